"""`rlsys serve-reward`: a reward function as an HTTP service, the other end of the reward `http`."""
