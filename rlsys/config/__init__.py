"""Options of a run: their defaults, bounds, choices and help, and their composition with Hydra.

Nothing here uses an option; checks that relate several options belong to `rlsys/preflight/`.
"""
