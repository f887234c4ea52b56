"""Calling a reward function: TRL's signature, and the check that a call can work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards import Failed
from rlsys.rewards.entry import absolute, bind_reward
from rlsys.scoring.call import RewardLog, RewardRequest, WrongReturnError, call_reward

REQUEST = RewardRequest(
    prompts=["1+1=", "2+2="],
    completions=["2", "five"],
    completion_ids=[[7], [8, 9]],
    columns={"answer": ["2", "4"], "level": [1, None]},
    step=12,
)
Function = Callable[..., Any]


def call(function: Function, log: RewardLog | None = None) -> list[float | Failed | None]:
    return call_reward(function, REQUEST, log if log is not None else RewardLog())


def test_all_of_trl_s_arguments() -> None:
    seen: dict[str, Any] = {}

    def score(
        prompts: Any,
        completions: Any,
        completion_ids: Any,
        answer: Any,
        level: Any,
        trainer_state: Any,
        log_extra: Any,
        log_metric: Any,
    ) -> list[float]:
        seen.update(locals())
        return [0.5, 1]

    assert call(score) == [0.5, 1.0]
    assert seen["prompts"] == ["1+1=", "2+2="]
    assert seen["completions"] == ["2", "five"]
    assert seen["completion_ids"] == [[7], [8, 9]]
    assert (seen["answer"], seen["level"]) == (["2", "4"], [1, None])
    assert seen["trainer_state"].global_step == 12


def test_keyword_arguments_get_everything() -> None:
    seen: dict[str, Any] = {}

    def score(completions: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0] * len(completions)

    call(score)
    assert set(seen) == {"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "answer", "level"}


def test_a_function_gets_only_what_it_names() -> None:
    assert call(lambda completions: [float(len(text)) for text in completions]) == [1.0, 4.0]
    assert call(lambda answer: [float(text) for text in answer]) == [2.0, 4.0]


def test_an_async_function_is_awaited() -> None:
    async def score(completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert call(score) == [1.0, 4.0]


def test_none_stays_none() -> None:
    assert call(lambda completions: [None, True]) == [None, 1.0]


def test_what_the_function_logs() -> None:
    def score(completions: Any, log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        log_metric("accuracy", 1)
        log_metric("accuracy", 0.5)
        log_extra(column="parsed", values=["2", None])  # by TRL's names
        return [0.0, 0.0]

    log = RewardLog()
    call(score, log)
    assert log.metrics == {"accuracy": [1.0, 0.5]}
    assert log.extra == {"parsed": ["2", None]}


def test_what_trainer_state_lacks_is_named() -> None:
    with pytest.raises(AttributeError, match="no 'num_train_epochs'; it has global_step, max_steps, epoch"):
        call(lambda completions, trainer_state: [trainer_state.num_train_epochs])


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([1.0], "returned 1 value for 2 completions"),
        ([1.0, 1.0, 1.0], "returned 3 values for 2 completions"),
        (1.0, "returned float '1.0'; it must return a list"),
        (np.array(1.0), "returned ndarray '1.0'; it must return a list"),
        (torch.tensor(1.0), "returned Tensor"),
        (None, "returned NoneType 'None'"),
        ("10", "returned str '10'"),
        ({"a": 1.0, "b": 2.0}, "returned dict"),
    ],
)
def test_a_result_that_is_no_list_of_rewards_is_an_error(result: Any, said: str) -> None:
    with pytest.raises(WrongReturnError, match=said):
        call(lambda completions: result)


def test_a_value_that_is_no_number_fails_alone() -> None:
    first, second = call(lambda completions: [0.0, "much"])
    assert first == 0.0
    assert isinstance(second, Failed)
    assert "returned str 'much' for this completion" in second.detail


def test_what_the_function_raises_comes_through() -> None:
    def score(completions: Any) -> list[float]:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        call(score)


def test_one_row_of_a_request() -> None:
    row = REQUEST.part(1, 2)
    assert len(row) == 1
    assert (row.prompts, row.completions, row.completion_ids) == (["2+2="], ["five"], [[8, 9]])
    assert (row.columns, row.step) == ({"answer": ["4"], "level": [None]}, 12)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A file of functions with options."""
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(completions, *, bonus=0.0, **kwargs):\n"
        "    return [bonus + kwargs.get('trainer_state').global_step] * len(completions)\n"
        "def needy(completions, solution, *, level, depth=1):\n"
        "    return [0.0] * len(completions)\n"
    )
    return str(path)


def test_options_come_from_the_list_of_rewards(mine: str) -> None:
    assert call(bind_reward({"name": f"{mine}:score", "weight": 3.0, "bonus": 0.5})) == [12.5, 12.5]
    assert call(bind_reward({"name": f"{mine}:score"})) == [12.0, 12.0]
    with pytest.raises(ConfigError, match="no option 'bonu'; accepted options: bonus"):
        bind_reward({"name": f"{mine}:score", "bonu": 0.5})


def test_an_option_beats_a_column_of_the_same_name() -> None:
    request = RewardRequest(["1+1="], ["x" * 7], [[1]], {"target": [99]}, step=1)
    assert call_reward(bind_reward({"name": "target_length", "target": 5}), request, RewardLog()) == [-2.0]  # -|5 - 7|


@pytest.mark.parametrize(
    ("spec", "columns", "missing"),
    [
        ({"name": "exact_match"}, ["solution"], "answer"),
        ({"name": "math_answer"}, [], "answer"),
        ({"name": "{mine}:needy"}, ["level"], "solution"),
        ({"name": "{mine}:needy"}, ["solution"], "level"),
    ],
)
def test_a_missing_column_is_named(mine: str, spec: Mapping[str, Any], columns: list[str], missing: str) -> None:
    spec = {"name": spec["name"].format(mine=mine)}
    with pytest.raises(ConfigError) as caught:
        check_reward(spec, columns)
    assert f"reward '{spec['name']}' needs the column '{missing}'" in str(caught.value)
    assert f"its columns: {', '.join(columns) or 'none'}" in str(caught.value)


def test_a_reward_with_all_it_needs_passes(mine: str) -> None:
    check_reward({"name": f"{mine}:needy"}, ["solution", "level"])
    check_reward({"name": f"{mine}:needy", "level": 3}, ["solution"])  # an option stands in for a column
    check_reward({"name": "target_length"}, [])


def test_a_text_where_a_file_may_be_named_stays_a_text() -> None:
    text = "Grade the answer strictly. " * 15
    spec = {"name": "llm_judge", "url": "http://x/v1", "model": "m", "instruction": text}
    assert absolute(spec)["instruction"] == text
    assert absolute({"name": "reward_model", "model": "org/model"})["model"] == "org/model"
