"""Weights on their way from the learner to the engines: sending, carrying, comparing both sides afterwards.

Channels (gloo, NCCL, CUDA IPC), the packing of parameters into buckets, adapters as files, and the checks that engines
compute with what the learner sent. How an engine loads what arrives is in `rollout/engine`; when a broadcast happens is
decided by the loop.
"""
