"""Ray: cluster, placement, waiting with deadlines, and the end of every process a run started."""
