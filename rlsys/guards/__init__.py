"""Guards that end a run which cannot go on (NaN and infinity, missing rewards), and watches that only report.

The latter report first failures of reward functions, and signals that cannot teach.

Not here: checks before a run starts (`rlsys/preflight/`), the comparison of engines and learner (`rlsys/weights/`), and
deadlines and dead workers (`rlsys/runtime/`).
"""
