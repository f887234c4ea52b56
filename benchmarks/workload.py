"""The work that both sides of a benchmark do: one tiny model, one file of prompts, one set of options."""

from __future__ import annotations

import contextlib
import json
import os
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.side import Side
from rlsys.config.build_schema import ModelBuild
from rlsys.config.schema import Config

PROMPTS_PER_STEP = 16
SAMPLES_PER_PROMPT = 8
PROMPT_TOKENS = 32
LEARNING_RATE = 0.0  # with learning, the two sides' responses would come to differ
KL_COEF = 0.001
MODEL = ModelBuild(hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=768, max_context=1024)

# Variables of the caller's shell that would affect the threads of the two sides differently, or name a Ray cluster.
DISTURBING = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAY_ADDRESS",
    "VLLM_CPU_OMP_THREADS_BIND",
)


@dataclass(frozen=True)
class Case:
    """The lengths of a step's prompts and responses."""

    tokens: int  # length of every response; with `natural`, of the longest
    prompt_tokens: int = PROMPT_TOKENS
    natural: bool = False  # responses end at their end token


CASES = {
    "64": Case(64),
    "256": Case(256),
    "natural": Case(512, natural=True),
    "long_prompt": Case(64, prompt_tokens=512),
}


@dataclass(frozen=True)
class Workload:
    """A folder that contains a model and a file of prompts of `prompt_tokens` tokens each."""

    folder: Path
    num_parameters: int
    prompt_tokens: int = PROMPT_TOKENS

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    def describe(self) -> dict[str, Any]:
        """Return the workload's description for the results, without the folder's path."""
        return {
            "model": asdict(MODEL),
            "num_parameters": self.num_parameters,
            "prompts_per_step": PROMPTS_PER_STEP,
            "samples_per_prompt": SAMPLES_PER_PROMPT,
            "prompt_tokens": self.prompt_tokens,
            "dtype": "float32",
            "learning_rate": LEARNING_RATE,
        }


def build_workload(folder: Path, num_batches: int, prompt_tokens: int = PROMPT_TOKENS) -> Workload:
    """Write model, tokenizer and prompts into `folder`; no prompt occurs twice, so no prefix is ever cached.

    This happens in a process of its own, so that the process that starts the sides stays small and idle.
    """
    folder.mkdir(exist_ok=True)
    with Side("benchmarks.workload:builder", log=folder / "build.log", env=side_env(folder)) as build:
        return build(folder=folder, num_batches=num_batches, prompt_tokens=prompt_tokens)


@contextlib.contextmanager
def builder() -> Iterator[Callable[..., Workload]]:
    """Provide the function that writes the workload."""
    yield _build


def _build(folder: Path, num_batches: int, prompt_tokens: int) -> Workload:
    from rlsys.models.tiny import build_model, build_tokenizer, save_model

    tokenizer = build_tokenizer(MODEL.tokenizer)
    model = build_model(MODEL, tokenizer, seed=0)
    workload = Workload(folder, sum(parameter.numel() for parameter in model.parameters()), prompt_tokens)
    save_model(model, tokenizer, workload.model)
    count = num_batches * PROMPTS_PER_STEP
    rows = [{"prompt": _prompt(index, prompt_tokens), "answer": str(index)} for index in range(count)]
    lengths = {len(tokenizer(row["prompt"])["input_ids"]) for row in rows}
    if lengths != {prompt_tokens}:
        raise RuntimeError(f"every prompt must have {prompt_tokens} tokens; the lengths found are {sorted(lengths)}")
    workload.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return workload


def read_prompts(workload: Workload) -> list[dict[str, str]]:
    """Return the rows of the prompt file."""
    return [json.loads(line) for line in workload.prompts.read_text(encoding="utf-8").splitlines()]


def rlsys_config(workload: Workload, tokens: int, *, num_steps: int = 1, kl: float = 0.0) -> Config:
    """Return the config of a run with this workload, composed as the command line composes it.

    Args:
        workload: the model and the prompts.
        tokens: forced length of every response.
        num_steps: number of training steps.
        kl: coefficient of the KL penalty; above 0 a reference worker is started.
    """
    from rlsys.config.compose import load_config

    return load_config(
        [
            "reward=target_length",
            f"model.path={workload.model}",
            f"data.train={workload.prompts}",
            "data.eval=null",
            "data.shuffle=false",
            f"train.num_steps={num_steps}",
            f"train.prompts_per_step={PROMPTS_PER_STEP}",
            f"train.samples_per_prompt={SAMPLES_PER_PROMPT}",
            f"rollout.max_response_tokens={tokens}",
            "rollout.ignore_eos=true",
            "learner.dtype=float32",
            f"learner.lr={LEARNING_RATE}",
            f"algorithm.kl.coef={kl}",
            "algorithm.aggregation.name=token_mean",  # like TRL's loss_type="dapo"
        ]
    )


def side_env(folder: Path) -> dict[str, str]:
    """Return the environment that every side starts with: all cores, no network, no cache outside `folder`."""
    env = {key: value for key, value in os.environ.items() if key not in DISTURBING}
    return env | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}


def _prompt(index: int, size: int) -> str:
    """Return a deterministic text that starts with its index; the tokenizer makes one token per character."""
    letters = random.Random(index).choices(string.ascii_lowercase + " ", k=size)
    return f"{index:05d} {''.join(letters)}"[:size]
