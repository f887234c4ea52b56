"""`rlsys serve-reward`: a reward function behind HTTP."""
