"""Ray: cluster, placement, waiting with deadlines, and the end of every process a run started.

Nothing here knows what a worker computes: roles, prompts and weights do not belong here.
"""
