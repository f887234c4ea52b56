"""Sandboxes for programs of unknown origin, one per program. Scores belong to `rewards`."""
