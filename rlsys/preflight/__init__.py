"""Checks and preparation before Ray starts: the one place for checks that relate several options.

Bounds and choices of a single option belong to `rlsys/config/schema.py`. Nothing here starts a process.
"""
