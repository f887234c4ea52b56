"""The first failure of each reward function is logged, once per outcome."""

from __future__ import annotations

import pytest

from rlsys.guards.reward_failures import RewardFailureReporter
from rlsys.types import Reward, RewardPart
from tests.unit.records import reward

FAILED = Reward(None, {"match": RewardPart(None, "error", "ValueError: no"), "length": RewardPart(-1.0, "ok")}, "error")


def test_the_first_failure_of_each_kind_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failures = RewardFailureReporter()
    failures.report(1, [[reward(1.0)]])
    failures.report(2, [[FAILED, FAILED], [FAILED]])
    failures.report(3, [[FAILED, reward(None, "timeout", detail="too slow")]])
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        "step 2: first error of reward match, counted in reward/match/error from here on: ValueError: no"
    )
    assert "step 3: first timeout of reward exact_match" in caplog.messages[1]
