"""The time that a run would take on other numbers of workers: its measured costs, replayed through the same scheduler.

The scheduler itself is `orchestrator`; only its clock, engines and workers are replaced here.
"""
