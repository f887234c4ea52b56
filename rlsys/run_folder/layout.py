"""The names of a run folder's files. The layout is stable; docs/observability.md explains it."""

from __future__ import annotations

CONFIG = "config.yaml"
LOCK = "lock"  # held by the process that writes the folder
START = "start.txt"
METRICS = "metrics.jsonl"
WARNINGS = "warnings.jsonl"
SCALE = "scale"  # requests for another number of engines, while there are any
PAUSED = "paused"  # while it is there the run starts no step
ROLLOUTS = "rollouts"
NONFINITE = "nonfinite"
REPLAY = "replay"
TOKENIZER = "tokenizer"
LOGS = "logs"
TRACKER_ID = "tracker_id"
TIMELINE = "timeline"
CHECKPOINTS = "checkpoints"

# Prefixes of the names that a start over moves aside. Not among them: configuration, tokenizer and checkpoints, which
# are written again, and logs, which are appended to.
WRITTEN = (METRICS, WARNINGS, ROLLOUTS, NONFINITE, REPLAY, TIMELINE, "events.out.", "wandb", TRACKER_ID)

# In the folder of a checkpoint:
STATE = "state.json"
MANIFEST = "manifest.json"
POLICY = "policy"  # a Hugging Face folder
ADAPTER = "adapter"  # a peft folder
REFERENCE = "reference.safetensors"
FINISHED = "finished"  # groups that no step has trained yet
