"""The TRL side of the end-to-end benchmark: GRPOTrainer with the same model, prompts, reward and lengths."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.workload import (
    LEARNING_RATE,
    PROMPTS_PER_STEP,
    SAMPLES_PER_PROMPT,
    Case,
    Workload,
    read_prompts,
)
from rlsys.rewards.target_length import target_length


class StepClock(TrainerCallback):
    """A clock of each step, generation included, and of the time from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.step: list[float] = []
        self.step_to_step: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last_end = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        end = time.perf_counter()
        self.step.append(end - self._begin)
        self.step_to_step.append(end - self._last_end)
        self._last_end = end


class TimedTrainer(GRPOTrainer):
    """A GRPOTrainer that records the seconds of generation and of rewards."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds: dict[str, list[float]] = {"rollout": [], "reward": []}

    def _generate(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        answer = super()._generate(*args, **options)
        self.seconds["rollout"].append(time.perf_counter() - start)
        return answer

    def _calculate_rewards(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        answer = super()._calculate_rewards(*args, **options)
        self.seconds["reward"].append(time.perf_counter() - start)
        return answer


@contextlib.contextmanager
def trl_side() -> Iterator[Callable[..., dict[str, Any]]]:
    yield measure


def measure(workload: Workload, case: Case, num_steps: int, kl: float) -> dict[str, Any]:
    """Train `num_steps` steps and return the seconds of each, by stage and in total."""
    cores = len(os.sched_getaffinity(0))
    if torch.get_num_threads() != cores:
        raise RuntimeError(f"torch runs {torch.get_num_threads()} threads on {cores} cores; it must use one per core")
    clock = StepClock()
    trainer = TimedTrainer(
        model=str(workload.model),
        reward_funcs=target_length,
        args=_config(workload, case, num_steps, kl),
        train_dataset=Dataset.from_list(read_prompts(workload)),
        callbacks=[clock],
    )
    if next(trainer.model.parameters()).dtype != torch.float32:
        found = next(trainer.model.parameters()).dtype
        raise RuntimeError(f"the model runs in {found}; the comparison needs torch.float32")
    trainer.train()

    logged = [row for row in trainer.state.log_history if "completions/min_length" in row]
    bounds = [(row["completions/min_length"], row["completions/max_length"]) for row in logged]
    if len(bounds) != num_steps or (not case.natural and set(bounds) != {(case.tokens, case.tokens)}):
        wanted = f"{num_steps} steps" + ("" if case.natural else f" with every completion of {case.tokens} tokens")
        raise RuntimeError(f"expected {wanted}; shortest and longest completion of each step: {bounds}")
    timed = trainer.seconds
    rest = [
        step - rollout - reward
        for step, rollout, reward in zip(clock.step, timed["rollout"], timed["reward"], strict=True)
    ]
    return {
        "response_tokens": [row["completions/mean_length"] for row in logged],
        "stages": {**timed, "update": rest},  # includes the forward of the reference model, if there is one
        "step": clock.step,
        "step_to_step": clock.step_to_step,
    }


def _config(workload: Workload, case: Case, num_steps: int, kl: float) -> GRPOConfig:
    """Return a config of one optimizer step per generation; every option that TRL shares with rlsys is set alike."""
    return GRPOConfig(
        output_dir=str(workload.folder / "trl"),
        model_init_kwargs={"dtype": "float32"},
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS_PER_STEP * SAMPLES_PER_PROMPT,
        num_generations=SAMPLES_PER_PROMPT,
        max_steps=num_steps,
        max_completion_length=case.tokens,
        # The end token cannot be sampled before this many tokens, so every completion has the full length.
        generation_kwargs={} if case.natural else {"min_new_tokens": case.tokens},
        temperature=1.0,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=kl,
        loss_type="dapo",  # the mean over all tokens, like rlsys' token_mean
        seed=0,
        report_to=[],
        save_strategy="no",
        logging_steps=1,  # `measure` checks the lengths of every step
        disable_tqdm=True,
    )
