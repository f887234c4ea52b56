"""Episodes: what one environment and one policy do together, turn by turn, as trajectories of exact tokens.

`worker` plays them, `player` is an episode's course, `row` its tokens, and `slots` and `process` run the environments'
code in processes that can be killed. What a chat template does between two turns is in `rlsys.data.turns`, and how tool
calls are found in `rlsys.data.calls`.
"""
