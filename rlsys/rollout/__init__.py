"""Rollout workers: prompts in, trajectories out, on vLLM.

Which prompt goes to which engine, and when, is decided in `orchestrator`; how new weights arrive, in `weights`.
"""
