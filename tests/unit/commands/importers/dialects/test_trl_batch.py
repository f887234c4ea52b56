"""TRL's batch arithmetic, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.commands.importers.dialects.trl import DIALECT
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.translate import Translation, translate
from rlsys.errors import ConfigError


def run(options: dict[str, Any], size: RunSize | None = None, version: str = "1.16") -> Translation:
    return translate(options, DIALECT, version, size or RunSize())


def batch(options: dict[str, Any], processes: int = 1) -> tuple[int, ...]:
    """Return prompts, samples, minibatches and passes."""
    written = run(options, RunSize(num_processes=processes)).written
    names = ("prompts_per_step", "samples_per_prompt", "minibatches_per_step", "updates_per_step")
    return tuple(written[f"train.{name}"] for name in names)


@pytest.mark.parametrize(
    ("per_device", "processes", "options", "expected"),
    [
        # 8 completions an update, groups of 8: one prompt a step.
        (8, 1, {}, (1, 8, 1, 1)),
        # open-r1's demonstration on 8 processes: 16 * 8 * 4 = 512 completions in groups of 16.
        (16, 8, {"gradient_accumulation_steps": 4, "num_generations": 16}, (32, 16, 1, 1)),
        # TRL's test run: 4 * 2 completions in groups of 4.
        (4, 1, {"gradient_accumulation_steps": 2, "num_generations": 4}, (2, 4, 1, 1)),
        # The figure in TRL's sampler: 3 a device, 2 devices, 4 steps a generation of which 2 make an update, groups
        # of 2: 24 completions, prompts 0 to 11, two updates of 12.
        (3, 2, {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_generations": 2}, (12, 2, 2, 1)),
        # The same by its size.
        (3, 2, {"gradient_accumulation_steps": 2, "generation_batch_size": 24, "num_generations": 2}, (12, 2, 2, 1)),
        # Each generation used twice: two passes.
        (8, 2, {"steps_per_generation": 4, "num_iterations": 2}, (8, 8, 4, 2)),
        # An update of 32 out of generations of 16: the update is the step.
        (8, 1, {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_generations": 4}, (8, 4, 1, 1)),
        # 16 completions of one prompt in 4 updates: a prompt's samples stay together here.
        (4, 1, {"steps_per_generation": 4, "num_generations": 16}, (1, 16, 1, 1)),
    ],
)
def test_completions_become_prompts(
    per_device: int, processes: int, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert batch({"per_device_train_batch_size": per_device, **options}, processes) == expected


def test_a_group_divided_among_updates_is_unsupported() -> None:
    result = run({"per_device_train_batch_size": 4, "steps_per_generation": 4, "num_generations": 16})
    assert [left.option for left in result.unsupported] == ["steps_per_generation"]
    assert "4 updates per generation of 1 prompts" in result.unsupported[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 6}, "num_generations=8 does not divide the generation batch of 6"),
        ({"per_device_train_batch_size": 6}, "it could be 2, 3, 6"),
        ({"num_generations": 1}, "num_generations=1 does not divide"),
        ({"generation_batch_size": 12}, "not a multiple of per_device_train_batch_size * processes = 8"),
        ({"generation_batch_size": 16, "steps_per_generation": 2}, "TRL takes one of them"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "mix generations within an update"),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 2}, "used 2 times"),
    ],
)
def test_batches_that_trl_refuses_or_mixes_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(options)
    assert message in str(caught.value)


def test_processes_come_from_the_command_then_from_the_file() -> None:
    assert batch({"num_processes": 4}, processes=2)[0] == 2
    assert run({"num_processes": 4}).written["train.prompts_per_step"] == 4
    assert run({}).written["train.prompts_per_step"] == 1


@given(
    per_device=st.integers(1, 8),
    processes=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    generations=st.integers(1, 6),
    group=st.integers(2, 8),
    passes=st.integers(1, 3),
)
def test_a_step_trains_on_one_generation(
    per_device: int, processes: int, accumulation: int, generations: int, group: int, passes: int
) -> None:
    """Completions per generation, and the updates that use it, are those of TRL."""
    steps = accumulation * generations
    options = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": steps,
        "num_generations": group,
        "num_iterations": passes,
    }
    completions = per_device * processes * steps
    if completions % group:
        with pytest.raises(ConfigError):
            batch(options, processes)
        return
    prompts, samples, minibatches, updates = batch(options, processes)
    assert prompts * samples == completions
    assert updates == passes
    assert minibatches == min(generations, prompts)


# 64 completions of 8 prompts per step, in two updates.
LARGER = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "steps_per_generation": 4}


@pytest.mark.parametrize(
    ("options", "rows", "num_steps"),
    [
        ({"max_steps": 100}, None, 50),  # two updates a step
        ({"max_steps": 101}, None, 51),
        ({"max_steps": 100, "num_iterations": 2}, None, 25),
        ({"num_train_epochs": 3}, 100, 36),  # 12 generations an epoch, 4 rows left over
        ({"num_train_epochs": 0.5}, 100, 6),
        ({}, 100, 36),  # three epochs are the default
    ],
)
def test_updates_and_epochs_become_steps(options: dict[str, Any], rows: int | None, num_steps: int) -> None:
    assert run(LARGER | options, RunSize(num_rows=rows)).written["train.num_steps"] == num_steps


def test_epochs_need_the_number_of_rows() -> None:
    given_epochs = run({"num_train_epochs": 2})
    assert "train.num_steps" not in given_epochs.written
    assert "--num-rows" in given_epochs.unsupported[0].reason
    default = next(row for row in run({}).defaults if row.option == "num_train_epochs")
    assert (default.theirs, default.written, default.is_supported) == (3.0, {}, False)
    assert default.ours == {"train.num_steps": 200}  # which the run will use instead


@pytest.mark.parametrize(
    ("options", "warmup"),
    [
        ({"warmup_steps": 7}, 7),
        ({"warmup_ratio": 0.1}, 8),  # of 72 updates, rounded up
        ({"warmup_steps": 0.25}, 18),  # transformers 5 takes a share so
        ({"warmup_steps": 5, "warmup_ratio": 0.5}, 5),
        ({}, 0),
    ],
)
def test_warm_up_counts_updates(options: dict[str, Any], warmup: int) -> None:
    result = run(LARGER | options, RunSize(num_rows=100))
    assert result.written["learner.warmup_steps"] == warmup


def test_the_constant_schedule_has_no_warm_up() -> None:
    result = run({"lr_scheduler_type": "constant", "warmup_steps": 9})
    assert (result.written["learner.lr_schedule"], result.written["learner.warmup_steps"]) == ("constant", 0)
    assert [left.option for left in result.ignored] == ["warmup_steps"]
    kept = run({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9})
    assert (kept.written["learner.lr_schedule"], kept.written["learner.warmup_steps"]) == ("constant", 9)


def test_an_unknown_schedule_is_replaced_and_reported() -> None:
    result = run({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}})
    assert result.written["learner.lr_schedule"] == "cosine"
    reasons = {left.option: left.reason for left in result.unsupported}
    assert "which ends at 0" in reasons["lr_scheduler_type"]
    assert "lr_scheduler_kwargs" in reasons


@pytest.mark.parametrize(
    ("options", "every", "keep"),
    [
        ({"save_steps": 100, "save_total_limit": 3}, 50, 3),  # two updates a step
        ({"save_strategy": "no", "save_total_limit": 1}, 0, 1),
        ({"save_strategy": "epoch", "save_total_limit": 1}, 12, 1),
        ({"save_steps": 0.25, "save_total_limit": 1}, 9, 1),  # of 36 steps
    ],
)
def test_checkpoint_intervals_count_updates(options: dict[str, Any], every: int, keep: int) -> None:
    written = run(LARGER | options, RunSize(num_rows=100)).written
    assert (written["checkpoint.every"], written["checkpoint.keep"]) == (every, keep)


def test_a_number_of_processes_that_nobody_says_is_said() -> None:
    assert "one process of the trainer is assumed" in translate({}, DIALECT, "1.16", RunSize()).remarks[0]
    assert not translate({"num_processes": 2}, DIALECT, "1.16", RunSize()).remarks
    assert not translate({}, DIALECT, "1.16", RunSize(num_processes=1)).remarks
