"""The scoring worker: trajectories in, typed rewards out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.config.schema import ScoringConfig
from rlsys.errors import ConfigError
from rlsys.models.resolve import load_tokenizer
from rlsys.preflight.rewards import check_reward
from rlsys.rewards.entry import label_rewards
from rlsys.rewards.tags import tags_of
from rlsys.scoring.decoder import Decoder, decoder_of
from rlsys.scoring.worker import ScoringSetup, ScoringWorker
from rlsys.types import EpisodeEnd, EpisodeRecord, Messages, PolicyTurn, Prompt, Trajectory

SEEN = """
def seen(prompts, completions, completion_ids, answer, level, log_metric, log_extra, **_):
    log_extra("doubled", [2 * len(ids) for ids in completion_ids])
    log_extra("too short to belong to rows", [1])
    log_metric("rows", len(completions))
    log_metric("rows", 0)
    rows = list(zip(prompts, completions, completion_ids, answer, level, strict=True))
    assert rows[0][:2] == ("1+1=", "2"), rows[0]
    assert rows[2][1] == [{"role": "assistant", "content": "4"}], rows[2]
    return [None if level is None else float(len(ids)) for *_, ids, answer, level in rows]
"""


def prompt(text: str | Messages, **columns: Any) -> Prompt:
    return Prompt(index=0, text=text, token_ids=np.array([1, 2], dtype=np.int32), columns=columns)


def trajectory(tokenizer: Any, response: str) -> Trajectory:
    """A prompt of two tokens, and `response`."""
    ids = np.array([6, 7, *tokenizer(response)["input_ids"]], dtype=np.int32)
    return Trajectory(ids, np.arange(len(ids)) >= 2, np.zeros(len(ids), dtype=np.float32), (), "stop", engine=0)


def decoder(folder: Path) -> Decoder:
    return decoder_of(load_tokenizer(str(folder)), str(folder))


def names(rewards: Sequence[str]) -> list[str]:
    return [label for label, _ in label_rewards([{"name": name} for name in rewards])]


def test_labels_are_names_without_paths_numbered_when_repeated() -> None:
    assert names(["exact_match", "length"]) == ["exact_match", "length"]
    assert names(["mine.py:score", "other.py:score", "my.package:score"]) == ["score", "score_2", "score_3"]


@pytest.mark.parametrize("rewards", [["a.py:f", "a.py:f_2", "b.py:f"], ["a.py:f_x", "a.py:f"], ["f_2", "f", "g:f"]])
def test_labels_are_never_alike(rewards: list[str]) -> None:
    assert len(set(names(rewards))) == len(rewards)


def test_a_call_of_two_groups(
    tmp_path: Path, tokenizer: Any, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    rewards = [{"name": f"{tmp_path}/seen.py:seen", "weight": 0.5}, {"name": "exact_match", "weight": 10.0}]
    worker = ScoringWorker(ScoringSetup(ScoringConfig(function_deadline_s=60.0), rewards, decoder(model_folder)))
    worker.start()
    prompts = [
        prompt("1+1=", answer="2", level=1),
        prompt([{"role": "user", "content": "2+2"}], answer="4"),  # this row has no `level`
    ]
    three = [trajectory(tokenizer, text) for text in ("2<end>", "33", "4<end>")]
    chunks = [[three[2], three[0]], [three[1]]]  # as they came out of the engines
    owners = [prompts[0], prompts[0], prompts[1]]
    with caplog.at_level("WARNING", "rlsys"):
        (scored, logged), texts = worker.score(owners, 5, [(0, 1), (1, 0), (0, 0)], *chunks)
    assert "log_extra('too short to belong to rows') got 1 values for 3 responses" in caplog.text
    assert texts == ["2", "33", "4"]
    # `seen` gives the number of response tokens at half weight, exact_match ten times 0 or 1.
    assert [reward.total for reward in scored] == [11.0, 1.0, 10.0]
    assert {part.outcome for reward in scored[:2] for part in reward.parts.values()} == {"ok"}
    assert scored[2].parts["seen"].outcome == "not_applicable"
    assert [reward.extra for reward in scored] == [{"doubled": 2 * len(each.response_ids)} for each in three]
    assert logged == {"rows": 1.5}  # (3 + 0) / 2


STATES = """
def states(completions, environments, **_):
    assert [message["role"] for message in completions[0]] == ["assistant", "user", "assistant"]
    return [float(environment.count) for environment in environments]
"""


def test_episodes_are_scored_by_their_messages_their_environment_and_its_state(
    tmp_path: Path, tokenizer: Any, model_folder: Path
) -> None:
    (tmp_path / "states.py").write_text(STATES)
    said = [
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "2"},
    ]
    opening = [{"role": "user", "content": "1+1="}]

    def episode(end: EpisodeEnd, reward: float | None) -> Trajectory:
        turns = (PolicyTurn(2, 3, reward, 0.5, 0.25),)
        record = EpisodeRecord(
            end, opening, said, turns, reward, metrics={"hops": 2.0}, state={"count": 3}, detail="why"
        )
        return replace(trajectory(tokenizer, "2<end>"), episode=record)

    rewards = [{"name": f"{tmp_path}/states.py:states", "weight": 0.5}, {"name": "exact_match"}]
    setup = ScoringSetup(
        ScoringConfig(function_deadline_s=60.0), rewards, decoder(model_folder), environment_weight=2.0
    )
    worker = ScoringWorker(setup)
    worker.start()
    chunk = [episode("completed", 1.0), episode("completed", None), episode("env_error", 0.5), episode("timeout", None)]
    row = prompt(opening, answer="2")
    (scored, logged), texts = worker.score([row] * 4, 5, [(0, number) for number in range(4)], chunk)
    assert [reward.total for reward in scored] == [4.5, 2.5, None, None]
    outcomes = [reward.parts["environment"].outcome for reward in scored]
    assert outcomes == ["ok", "not_applicable", "error", "timeout"]
    assert scored[2].parts["environment"].detail == "why"
    assert json.loads(texts[0])["messages"] == said
    assert logged == {"hops": 2.0}


TAGGED = """
def tagged(completions, **_):
    return [float(completion == "<think>4</think>2") for completion in completions]
"""


@pytest.fixture(scope="module")
def tagged_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tokenizer with special tokens that are tags, and one that no reward looks for."""
    folder = tmp_path_factory.mktemp("tagged")
    tokenizer.save_pretrained(folder)
    made = load_tokenizer(str(folder))
    made.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<tool>"]})
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("skip", "text"),
    [(None, "<think>4</think>2"), (True, "42"), (False, "<think>4</think><tool>2<end>")],
)
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "format"},
        {"name": "tag_count"},
        {"name": "regex", "pattern": r"^\<think>.*</think>"},
        {"name": "tagged.py:tagged"},
        {"name": "easyr1_function", "function": "tagged.py:tagged"},
    ],
    ids=str,
)
def test_special_tokens_that_are_tags(
    tmp_path: Path, tagged_folder: Path, spec: dict[str, Any], skip: bool | None, text: str
) -> None:
    (tmp_path / "tagged.py").write_text(TAGGED + "\nEND = '<end>'\n")
    spec = {key: value.replace("tagged.py", f"{tmp_path}/tagged.py") for key, value in spec.items()}
    scoring = ScoringConfig(skip_special_tokens=skip)
    worker = ScoringWorker(ScoringSetup(scoring, [spec], decoder(tagged_folder), tags=tags_of([spec])))
    made = trajectory(load_tokenizer(str(tagged_folder)), "<think>4</think><tool>2<end>")
    request = worker._request([prompt("1+1=")], 1, [made])
    assert request.completions == [text]
    assert request.completion_ids == [made.response_ids.tolist()]


def test_rewards_that_look_for_no_tags_see_no_special_tokens(tagged_folder: Path) -> None:
    spec = {"name": "exact_match"}
    worker = ScoringWorker(ScoringSetup(ScoringConfig(), [spec], decoder(tagged_folder), tags=tags_of([spec])))
    made = trajectory(load_tokenizer(str(tagged_folder)), "<think>4</think>2<end>")
    assert worker._request([prompt("1+1=")], 1, [made]).completions == ["42"]


MEETING = """
import os
import time
from pathlib import Path

def meets(completions, **_):
    folder = Path(__file__).parent
    (folder / f"{os.getpid()}.here").touch()
    while len(list(folder.glob("*.here"))) < 3:
        time.sleep(0.01)
    return [1.0] * len(completions)

def hangs(completions, **_):
    time.sleep(600)
"""


def test_a_slow_function_keeps_no_other_waiting(tmp_path: Path, tokenizer: Any, model_folder: Path) -> None:
    """Three functions that wait for each other are done; a hung one, asked before them, ends at its own deadline."""
    (tmp_path / "meeting.py").write_text(MEETING)
    hangs, meets = (f"{tmp_path}/meeting.py:{name}" for name in ("hangs", "meets"))
    specs = [{"name": hangs, "deadline_s": 0.2}, {"name": meets}, {"name": meets}, {"name": meets}]
    worker = ScoringWorker(ScoringSetup(ScoringConfig(function_deadline_s=60.0), specs, decoder(model_folder)))
    worker.start()
    (rewards, _), _ = worker.score([prompt("1+1=")], 1, [(0, 0)], [trajectory(tokenizer, "2")])
    parts = list(rewards[0].parts.values())
    assert [part.outcome for part in parts] == ["timeout", "ok", "ok", "ok"]
    assert "no result within 0.2 s" in parts[0].detail
    assert rewards[0].total is None


MADE = """
class Longer:
    def __init__(self, *, than=3):
        self.than = than

    def __call__(self, completions, level, **_):
        return [float(len(text) > self.than) for text in completions]
"""


def test_a_class_is_made_once_with_its_options(tmp_path: Path, tokenizer: Any, model_folder: Path) -> None:
    (tmp_path / "made.py").write_text(MADE)
    spec = {"name": f"{tmp_path}/made.py:Longer", "than": 1}
    worker = ScoringWorker(ScoringSetup(ScoringConfig(function_deadline_s=60.0), [spec], decoder(model_folder)))
    worker.start()
    owners = [prompt("1+1=", level=1), prompt("1+1=", level=1)]
    (rewards, _), _ = worker.score(owners, 1, [(0, 0), (0, 1)], [trajectory(tokenizer, text) for text in ("2", "22")])
    assert [reward.total for reward in rewards] == [0.0, 1.0]
    check_reward(spec, ["level"])
    with pytest.raises(ConfigError, match=r"reward '.*Longer' needs the column 'level'"):
        check_reward(spec, ["answer"])
    with pytest.raises(ConfigError, match="has no option 'then'; accepted options: than"):
        check_reward({**spec, "then": 1}, ["level"])
