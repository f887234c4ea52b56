"""Stand-ins for GPUs: for what a machine without one cannot run for real."""
