"""rlsys: distributed actor-learner reinforcement learning for language models on Ray, vLLM and DeepSpeed."""

__version__ = "0.1.0"
