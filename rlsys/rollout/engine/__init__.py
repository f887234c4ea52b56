"""vLLM: its core on a thread of the rollout worker, and what it loads by name into the processes of its ranks.

Importing these modules loads vLLM, and some change it (`process.py`). Only the rollout worker imports `core.py`; vLLM
imports the schedulers (`scheduler_cls`) and the receiving end of a broadcast (`worker_extension_cls`).
"""
