"""The scoring role: workers that turn trajectories into rewards, with a deadline and a typed outcome for every part.

A call passes through four modules: `pool` sends trajectories to a Ray worker; `worker` decodes them and calls all
functions at once; `process` runs each function in a process that can be killed, and retries what failed; `call` in that
process calls the function with the arguments that it accepts. The functions themselves are in `rewards`.
"""
