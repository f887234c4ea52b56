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
    """Seconds of each step, generation included, and from the end of one step to the end of the next."""

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
    """GRPOTrainer that notes how long generating and rewarding took."""

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
    """Train `num_steps` steps; returns seconds, one number a step."""
    cores = len(os.sched_getaffinity(0))
    if torch.get_num_threads() != cores:
        raise RuntimeError(f"torch runs {torch.get_num_threads()} threads on {cores} cores")
    clock = StepClock()
    trainer = TimedTrainer(
        model=str(workload.model),
        reward_funcs=target_length,
        args=_config(workload, case, num_steps, kl),
        train_dataset=Dataset.from_list(read_prompts(workload)),
        callbacks=[clock],
    )
    if next(trainer.model.parameters()).dtype != torch.float32:
        raise RuntimeError(f"the model runs in {next(trainer.model.parameters()).dtype}")
    trainer.train()

    logged = [row for row in trainer.state.log_history if "completions/min_length" in row]
    bounds = [(row["completions/min_length"], row["completions/max_length"]) for row in logged]
    if len(bounds) != num_steps or (not case.natural and set(bounds) != {(case.tokens, case.tokens)}):
        raise RuntimeError(f"completions were not forced to {case.tokens} tokens in {num_steps} steps: {bounds}")
    timed = trainer.seconds
    rest = [
        step - rollout - reward
        for step, rollout, reward in zip(clock.step, timed["rollout"], timed["reward"], strict=True)
    ]
    return {
        "response_tokens": [row["completions/mean_length"] for row in logged],
        "stages": {**timed, "update": rest},  # with a reference model its forward pass is in here too
        "step": clock.step,
        "step_to_step": clock.step_to_step,
    }


def _config(workload: Workload, case: Case, num_steps: int, kl: float) -> GRPOConfig:
    """One optimizer step for each generation; everything that TRL and rlsys both have is set alike."""
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
        # The end token cannot be drawn before this many tokens, so every completion runs to its limit.
        generation_kwargs={} if case.natural else {"min_new_tokens": case.tokens},
        temperature=1.0,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=kl,
        loss_type="dapo",  # the mean over all tokens, as rlsys' token_mean
        seed=0,
        report_to=[],
        save_strategy="no",
        logging_steps=1,  # the lengths of every step are checked
        disable_tqdm=True,
    )
