"""Reasons for leaving an option out that several dialects give, in the report's words."""

from __future__ import annotations

SAMPLING = "it changes the sampled distribution, which the learner could then no longer check (docs/limits.md)"
TEXT_ONLY = "rlsys trains text models only"
DEVICES = "set the devices where you start the run: cluster.num_gpus, learner.num_workers, rollout.num_workers"
MEMORY = "learner.microbatch_tokens bounds how much is computed at once"
SHARDING = "DeepSpeed shards the learner: learner.zero_stage"
KERNELS = "the learner chooses its kernels itself (learner.packing)"
BALANCE = "rlsys reads it from the model's config.json: output_router_logits and router_aux_loss_coef"
FOLDERS = "a run and its checkpoints go to runs/NAME/TIME; run_dir=... chooses a folder, resume=auto continues a run"
OWN_LOG = "rlsys writes every step to metrics.jsonl"
OWN_DISPLAY = "rlsys always writes metrics.jsonl and shows its display"
