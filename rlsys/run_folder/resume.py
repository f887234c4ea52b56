"""Options that a checkpoint's files fix: a run goes on with those that it was written with, or is refused.

Everything else that is changed between two starts takes effect, the optimizer's options included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlsys.algorithms.requirements import trained_roles
from rlsys.errors import ConfigError
from rlsys.preflight.prepared import Prepared
from rlsys.run_folder.checkpoint import load_state, newest

OF_RANKS = ("num_workers", "zero_stage", "dtype")
# ZeRO stages between whose checkpoints DeepSpeed converts, for any number of ranks.
ALIKE = ((0,), (1, 2), (3,))
# An adapter's scale and the rounding of its base are no files, but with others its numbers mean another policy.
OF_ADAPTERS = ("rank", "target_modules", "modules_to_save", "use_dora", "alpha", "use_rslora", "quantize_base")


def fixed_options(prepared: Prepared) -> dict[str, Any]:
    """Return the options that decide how a checkpoint's files look, or whose value they hold, by dotted keys."""
    config = prepared.config
    # A model that is built on the spot has a name made of everything that shapes it; its cache may move.
    path = prepared.model_path if config.model.path is not None else Path(prepared.model_path).name
    fixed: dict[str, Any] = {"model.path": path, "model.adapter": config.model.adapter}
    for role, options in trained_roles(config).items():
        fixed |= {f"{role}.{name}": getattr(options, name) for name in OF_RANKS}
    lora = config.learner.lora
    if lora.rank > 0:
        fixed |= {f"learner.lora.{name}": getattr(lora, name) for name in OF_ADAPTERS}
    return dict(json.loads(json.dumps(fixed)))  # as a checkpoint's file gives them back


def check_fixed_options(prepared: Prepared, run_dir: Path) -> None:
    """Raise ConfigError when the run would go on from a checkpoint that only loads with other options."""
    folder = newest(run_dir) if prepared.config.resume == "auto" else None
    if folder is None:
        return
    now = fixed_options(prepared)
    then = load_state(folder).written_with
    if not then:
        raise ConfigError(
            f"{folder} was written by an earlier version of rlsys, whose optimizer this version cannot load: choose "
            f"another run_dir; to start from its weights, set model.path={folder}/policy"
        )
    # Earlier versions wrote fewer of an adapter's options down.
    unwritten = {f"learner.lora.{name}" for name in OF_ADAPTERS if "learner.lora.rank" in then} - set(then)
    keys = [
        key
        for key in {**then, **now}
        if then.get(key) != now.get(key) and key not in unwritten and not _converts(key, then.get(key), now.get(key))
    ]
    if keys:
        changes = ", ".join(f"{key}={then.get(key, 'none')} (now {now.get(key, 'none')})" for key in keys)
        raise ConfigError(
            f"{folder} was written with {changes}, and only loads with that: set it back, or choose another run_dir "
            "for a new run"
        )


def _converts(key: str, then: Any, now: Any) -> bool:
    """Return whether a checkpoint that one value of an option wrote is converted for the other."""
    if then is None or now is None:  # a role that the run did not have
        return False
    is_alike = any(then in stages and now in stages for stages in ALIKE)
    return key.endswith(".num_workers") or (key.endswith(".zero_stage") and is_alike)
