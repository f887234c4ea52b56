"""The one reader and the writers of a run's folder: configuration, checkpoints, metrics, rollouts, timeline.

`folder.py` reads; each other module writes one kind of file, and holds the readers that its format needs. Commands use
these instead of opening files themselves. Nothing here starts or controls a run.
"""
