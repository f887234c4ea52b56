"""Reward workers: trajectories in, typed rewards out."""
