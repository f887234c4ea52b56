"""Guards that end a run which cannot go on (NaN and infinity, missing rewards), and the log of first reward failures.

Not here: checks before a run starts (`rlsys/preflight/`), the comparison of engines and learner (`rlsys/weights/`), and
deadlines and dead workers (`rlsys/runtime/`).
"""
