"""What the programs of a script do: which of them train by rewards, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.commands.importers.shell_script import Call
from rlsys.errors import ConfigError

SUPERVISED = "supervised fine-tuning"
PREFERENCES = "training on preferences (DPO and the like)"
REWARD_MODEL = "the training of a reward model"
SERVING = "a server"
OTHER_RL = "reinforcement learning that is not GRPO"
NOT_TRAINING = "no training"


@dataclass(frozen=True)
class Kind:
    """What a program does: `dialect` names the project of one that is read, `what` describes any other."""

    pattern: str
    dialect: str = ""
    what: str = ""


# The first pattern that is found in a program's name decides.
KINDS = (
    Kind(r"reward_server|serve_|vllm[ -]serve|vllm\.entrypoints|api_server|\bserve\b", what=SERVING),
    Kind(r"(^|[./_ ])(prm|rm|reward|reward_model(ing)?)(\.py)?$|train_(prm|rm)\b", what=REWARD_MODEL),
    Kind(r"sft", what=SUPERVISED),
    Kind(r"(^|[./_ ])(dpo|kto|orpo|cpo|bco|nash_md|xpo)\b|train_(dpo|kto|kd)|_dpo\b", what=PREFERENCES),
    Kind(r"generation|generate|inference|interactive|(^|[./_ ])eval|merge|preprocess|convert|lora_combiner|lighteval",
         what=NOT_TRAINING),
    Kind(r"^trl (rloo|gkd|ppo)|trl/scripts/(rloo|gkd|ppo)", what=OTHER_RL),
    Kind(r"verl\.trainer\.main$", "easyr1"),
    Kind(r"verl[./]trainer[./]main_ppo|main_dapo", "verl"),
    Kind(r"^verl\.|^recipe\.", what="another program of verl"),
    Kind(r"openrlhf\.cli\.train_ppo", "openrlhf"),
    Kind(r"openrlhf\.", what=NOT_TRAINING),
    Kind(r"open_r1", "open-r1"),
    Kind(r"^trl (grpo|--)|trl/scripts/grpo", "trl"),
    Kind(r"^axolotl train|axolotl\.cli\.train", "axolotl"),
    Kind(r"^(trl|axolotl) ", what=NOT_TRAINING),
)  # fmt: skip
TRAINS = re.compile(r"train|grpo|ppo|rl")


def kind_of(program: str) -> Kind | None:
    """Return what is known of a program, None for one that is not known."""
    return next((kind for kind in KINDS if re.search(kind.pattern, program)), None)


def training_call(found: Sequence[Call], origin: object) -> Call:
    """Return the call that trains by rewards. Raises ConfigError where no call does, or several may."""
    kinds = {call.line: kind_of(call.program) for call in found}
    known = [call for call in found if (kind := kinds[call.line]) and kind.dialect]
    unknown = [call for call in found if kinds[call.line] is None]
    by_name = [call for call in unknown if TRAINS.search(call.program)]
    candidates = known or by_name or unknown
    if not candidates:
        named = "; ".join(f"{described(call)} is {kind.what}" for call in found if (kind := kinds[call.line]))
        raise ConfigError(f"{origin}: {named}. Only recipes of training by rewards are read")
    if len(candidates) > 1:
        raise ConfigError(
            f"{origin} starts several programs that may be the training: {', '.join(map(described, candidates))}. Put "
            "the one that is meant into a script of its own, with the variables that it uses"
        )
    return candidates[0]


def described(call: Call) -> str:
    """Return how a call is named in messages."""
    return f"`{call.program or 'a list of flags'}` in line {call.line}"
