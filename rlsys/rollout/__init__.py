"""Rollout workers: prompts in, trajectories out, on vLLM."""
