"""Reward functions written for EasyR1 and OpenRLHF, as those projects document them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards.entry import absolute, bind_reward
from rlsys.rewards.exact_match import exact_match
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward
from rlsys.types import Messages

FUNCTIONS = """
import numpy as np
import torch

def compute_score(reward_inputs, format_weight=0.1):
    if not isinstance(reward_inputs, list):
        raise ValueError("a list was expected")
    scores = []
    for given in reward_inputs:
        right, tidy = float(given["response"] == given["ground_truth"]), float(given["response_length"] < 3)
        overall = (1 - format_weight) * right + format_weight * tidy
        scores.append({"overall": overall, "format": tidy, "accuracy": right})
    return scores

def one_score(reward_input):
    return {"overall": float(len(reward_input["response"])), "format": None}

def first_release(predicts, ground_truths, *, bonus=0.0):
    return [{"overall": float(p == t) + bonus, "accuracy": float(p == t)} for p, t in zip(predicts, ground_truths)]

def first_single(predict, ground_truth, bonus=0.5):
    return {"overall": float(predict == ground_truth) + bonus}

def reward_func(queries, prompts, labels):
    rewards = torch.tensor([float(q == p + l) for q, p, l in zip(queries, prompts, labels)])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"share": rewards.mean(), "each": [1, 2]}}

def bare(queries, prompts, labels, **kwargs):
    return torch.tensor([[float(len(query))] for query in queries])
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "theirs.py"
    path.write_text(FUNCTIONS)
    return str(path)


def called(spec: dict[str, Any], column: str, **changed: Any) -> tuple[list[Any], RewardLog]:
    log = RewardLog()
    prompts: list[str | Messages] = ["1+1=", [{"role": "user", "content": "1+2="}]]
    completions: list[Any] = ["2", [{"role": "assistant", "content": "4"}]]
    request = RewardRequest(prompts, completions, [[1], [1, 2, 3]], {column: ["2", "3"], **changed}, 1)
    return call_reward(bind_reward(spec), request, log), log


def test_easyr1_in_batches_with_options(file: str) -> None:
    spec = {"name": "easyr1_function", "function": f"{file}:compute_score", "options": {"format_weight": 0.5}}
    scores, log = called(spec, "answer")
    assert scores == [1.0, 0.0]
    assert log.metrics == {"format": [1.0, 0.0], "accuracy": [1.0, 0.0]}


def test_easyr1_one_by_one(file: str) -> None:
    spec = {"name": "easyr1_function", "function": f"{file}:one_score", "reward_type": "sequential"}
    scores, log = called(spec, "answer")
    assert scores == [1.0, 1.0]
    assert log.metrics == {}


def test_easyr1_s_first_releases_gave_responses_and_truths(file: str) -> None:
    spec = {"name": "easyr1_function", "function": f"{file}:first_release", "options": {"bonus": 1.0}}
    scores, log = called(spec, "answer")
    assert (scores, log.metrics) == ([2.0, 1.0], {"accuracy": [1.0, 0.0]})
    single = {"name": "easyr1_function", "function": f"{file}:first_single", "reward_type": "sequential"}
    assert called(single, "answer")[0] == [1.5, 0.5]


@pytest.mark.parametrize("column", ["label", "answer"])
def test_openrlhf_s_dictionary(file: str, column: str) -> None:
    scores, log = called({"name": "openrlhf_function", "function": f"{file}:reward_func"}, column)
    assert scores == [1.0, 0.0]
    assert log.metrics == {"share": [0.5], "each": [1.5]}


def test_openrlhf_s_tensor_and_which_column_is_the_label(file: str) -> None:
    assert called({"name": "openrlhf_function", "function": f"{file}:bare"}, "other")[0] == [5.0, 5.0]
    spec = {"name": "openrlhf_function", "function": f"{file}:reward_func"}
    assert called(spec, "label", answer=["x", "x"])[0] == [1.0, 0.0]


VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, *, bonus=0.0):
    extra_info["seen"] = True  # as some do
    right = solution_str == ground_truth
    return {"score": right + bonus + extra_info.get("index", 0), "acc": right, "source": data_source}

async def waits(data_source, solution_str, ground_truth, extra_info):
    return float(solution_str == ground_truth)

def batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(a == b) + len(c) for a, b, c in zip(solution_strs, ground_truths, extra_infos, strict=True)]
"""


@pytest.mark.parametrize(
    ("columns", "extra"),
    [
        ({"reward_model": [{"style": "rule", "ground_truth": "2"}, {"ground_truth": "5"}]}, [{"index": 3}, None]),
        ({"ground_truth": ["2", "5"], "answer": ["x", "x"]}, None),
        ({"answer": ["2", "5"]}, None),
    ],
)
def test_verl_s_data_and_functions(tmp_path: Path, columns: dict[str, Any], extra: list[Any] | None) -> None:
    (tmp_path / "theirs.py").write_text(VERL)
    columns = {**columns, "data_source": ["gsm8k"] * 2, **({} if extra is None else {"extra_info": extra})}
    request = RewardRequest(["1+1=", "2+2="], ["2", "4"], [[1], [1]], columns, step=1)
    spec: dict[str, Any] = {"name": "verl_function", "function": f"{tmp_path}/theirs.py:compute_score"}
    check_reward(spec, columns)
    log = RewardLog()
    found = call_reward(bind_reward({**spec, "options": {"bonus": 0.5}}), request, log)
    assert found == [1.5 + (3 if extra else 0), 0.5]
    assert log.metrics == {"acc": [1.0, 0.0]}
    assert extra is None or extra[0] == {"index": 3}
    spec["function"] = f"{tmp_path}/theirs.py:waits"
    assert call_reward(bind_reward(spec), request, log) == [1.0, 0.0]
    spec = {**spec, "function": f"{tmp_path}/theirs.py:batch", "reward_type": "batch"}
    assert call_reward(bind_reward(spec), request, log) == [1.0 + bool(extra), 0.0]
    with pytest.raises(ConfigError, match="needs one of the columns ground_truth, reward_model, answer"):
        check_reward(spec, ["data_source"])


def test_what_is_wrong_is_said_before_ray_starts(file: str) -> None:
    check_reward({"name": "easyr1_function", "function": f"{file}:compute_score"}, ["answer"])
    with pytest.raises(ConfigError, match="needs the column 'answer'"):
        check_reward({"name": "easyr1_function", "function": f"{file}:compute_score"}, ["label"])
    for name in ("easyr1_function", "openrlhf_function", "verl_function"):
        with pytest.raises(ConfigError, match="needs the option 'function'"):
            check_reward({"name": name}, ["answer"])
        with pytest.raises(ConfigError, match="compute_scor"):
            check_reward({"name": name, "function": f"{file}:compute_scor"}, ["answer"])
    with pytest.raises(ConfigError, match="reward_type"):
        check_reward({"name": "easyr1_function", "function": f"{file}:one_score", "reward_type": "one"}, ["answer"])


def test_the_file_does_not_depend_on_the_working_directory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(file).parent)
    spec = {"name": "openrlhf_function", "function": "theirs.py:bare"}
    assert absolute(spec) == {**spec, "function": f"{file}:bare"}
    assert absolute({"name": "openrlhf_function", "function": "package.module:f"})["function"] == "package.module:f"


def test_exact_match_accepts_any_of_a_list() -> None:
    golds = [["2", "two"], '["2", "two"]', "[2]", [], None, 2]
    assert exact_match(["two"] * 2 + ["[2]"] + ["2"] * 3, golds) == [1.0, 1.0, 1.0, None, None, 1.0]
    assert exact_match([" 2", '["2", "3"]', "4"], [["2"], '["2", "3"]', '["2", "3"]'], strip=False) == [0.0, 1.0, 0.0]
