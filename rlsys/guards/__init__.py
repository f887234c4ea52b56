"""Alarms about what a run's steps show, and what the run does about them: a warning, a pause, its end.

`guards` has them all and reacts; `alarms` is the watch over steps, with what `metric_alarms` finds in numbers and
`signals` in responses and rewards; `nonfinite` and `missing_rewards` count what a checkpoint remembers.

Not here: checks before a run starts (`rlsys/preflight/`), the comparison of engines and learner before an update
(`rlsys/weights/`), and deadlines and dead workers (`rlsys/runtime/`).
"""
