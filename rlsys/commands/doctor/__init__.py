"""The command `rlsys doctor`: what a run would meet on this machine or cluster, before anything is started.

The checks are those of `rlsys train`, in `rlsys.runtime` and `rlsys.build`; here they are printed.
"""
