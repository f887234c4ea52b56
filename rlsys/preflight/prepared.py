"""The record of a run that has passed every check; the roles make their setup from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlsys.config.schema import Config
from rlsys.data.order import Order
from rlsys.models.resolve import load_tokenizer
from rlsys.preflight.stops import StopToken
from rlsys.types import Prompt


@dataclass(frozen=True)
class EvalSet:
    """Held-out prompts of one source."""

    label: str
    prompts: list[Prompt]


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its configuration with absolute file names, the model's folder, the tokenised prompts."""

    config: Config
    model_path: str
    max_tokens: int  # length of the longest trajectory that this run can make
    train_prompts: list[Prompt]
    train_order: Order
    eval_sets: list[EvalSet]
    stop_tokens: tuple[StopToken, ...]  # end a response, in training and evaluation
    adapted_layers: tuple[str, ...] = ()  # last parts of their names; empty: any

    def tokenizer(self) -> Any:
        """Load the policy's tokenizer, with the run's chat template."""
        return run_tokenizer(self.config, self.model_path)


def run_tokenizer(config: Config, model_path: str) -> Any:
    """Load the tokenizer in `model_path`, with the chat template of `config`."""
    model = config.model
    return load_tokenizer(model_path, trust_remote_code=model.trust_remote_code, chat_template=model.chat_template)
