"""Episodes: what one environment and one policy do together, turn by turn, as trajectories of exact tokens.

`worker` plays them, `player` is an episode's course, `turns` makes the tokens between the policy's messages, `calls`
finds tool calls in them, `slots` and `process` run the environments' code in processes that can be killed.
"""
