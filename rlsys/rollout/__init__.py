"""Rollout workers: prompts in, trajectories out, on vLLM.

vLLM is used here and nowhere else, but for its communicator of NCCL (`weights/nccl.py`), which the learner needs too.
Which prompt goes to which engine, and when, is decided in `orchestrator`; how new weights travel, in `weights`.
"""
