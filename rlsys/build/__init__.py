"""Wires a run: places workers and starts them from the configuration. It decides nothing else."""
