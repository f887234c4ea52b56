"""`rlsys serve-reward`: a reward function as an HTTP service, the other end of the reward `http`.

How a function is called, in a process and with a deadline, belongs to `scoring`.
"""
