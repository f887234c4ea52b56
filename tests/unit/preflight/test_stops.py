"""The tokens that end a response."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rlsys.config.build_schema import TokenizerBuild
from rlsys.errors import ConfigError
from rlsys.models.resolve import ModelFacts
from rlsys.models.tiny import build_tokenizer
from rlsys.preflight.stops import StopToken, stop_tokens

END, USER = 1, 2  # ids of the tiny tokenizer; it has 101


def stops(*chosen: Any, end_of_turn: int | None = None, needs_one: bool = True, **files: Any) -> list[StopToken]:
    facts = ModelFacts(64, 101, files)
    tokenizer = build_tokenizer(TokenizerBuild())
    tokenizer.eos_token = files.pop("tokenizer", "<end>")
    return list(stop_tokens(tokenizer, facts, end_of_turn=end_of_turn, chosen=chosen, needs_one=needs_one))


def test_the_union_of_all_that_name_one() -> None:
    found = stops("\n", 7, "<system>", end_of_turn=END, config=(USER, END), generation=(END,))
    assert found == [
        StopToken(USER, "<user>", ("config",)),
        StopToken(END, "<end>", ("config", "generation", "tokenizer", "chat template")),
        StopToken(100, "\n", ("rollout.stop",)),
        StopToken(7, "2", ("rollout.stop",)),
        StopToken(4, "<system>", ("rollout.stop",)),
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("ab", "'ab' is 2 tokens, and a response ends at a single token"),
        ("é", "'é' is unknown to the tokenizer"),
        ("", "'' is unknown to the tokenizer"),
        (101, "the model has no token 101; its ids are 0 to 100"),
        (-1, "the model has no token -1"),
        (True, "True is neither a token's text nor its id"),
        (1.0, "1.0 is neither"),
        (["a"], "is neither"),
    ],
)
def test_what_is_not_one_token_is_refused(entry: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stops(entry)
    assert f"rollout.stop: {entry!r}" in str(caught.value)
    assert said in str(caught.value)


def test_an_end_that_the_model_lacks_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="rlsys.preflight")
    assert [stop.id for stop in stops(config=(500, -1, USER))] == [USER, END]
    assert [record.args for record in caplog.records] == [("config", 500), ("config", -1)]


def test_a_run_whose_responses_never_end_is_refused_unless_that_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"no token ends a response.*rollout\.stop.*rollout\.ignore_eos=true"):
        stops(tokenizer=None)
    assert stops(tokenizer=None, needs_one=False) == []
