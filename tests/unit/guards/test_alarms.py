"""What an alarm makes of a run: nothing, a warning, a pause, or its end."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.alarm_schema import REACTIONS
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError, RlsysError, SuspectPolicyError
from rlsys.guards.alarms import Alarms
from rlsys.guards.guards import Guards
from rlsys.guards.metric_alarms import KL_LIMIT
from rlsys.preflight.checks import check_config
from rlsys.run_folder.checkpoint import RunState
from tests.unit.virtual_time import run_virtual

AFAR = KL_LIMIT + 0.1


async def nothing(_: Any) -> Any:
    return []


def guards_of(run_dir: Path, *overrides: str, state: RunState | None = None) -> Guards:
    return Guards.from_config(load_config(overrides), run_dir, state or RunState(0, 0), nothing, nothing)


def look(alarms: Alarms, *values: float, first: int = 1) -> list[list[str]]:
    """The new alarms' kinds after each step, by the divergence from the reference."""
    rows = ({"step": step, "policy/kl_ref": value} for step, value in enumerate(values, start=first))
    return [[one.kind for one in alarms.look([], row)] for row in rows]


def test_an_alarm_comes_once_and_again_only_when_it_came_back() -> None:
    alarms = Alarms(load_config([]))
    assert look(alarms, AFAR, AFAR, AFAR, AFAR) == [[], [], ["kl"], []]
    assert [(alarm.step, alarm.name, alarm.reaction) for alarm in alarms.active] == [(3, "kl", "warn")]
    assert look(alarms, 0.1, AFAR, AFAR, AFAR, first=5) == [[], [], [], ["kl"]]


def test_a_step_without_the_number_leaves_everything_as_it_was() -> None:
    alarms = Alarms(load_config([]))
    look(alarms, AFAR, AFAR)
    assert alarms.look([], {"step": 3, "policy/kl_ref": None}) == []
    assert look(alarms, AFAR, first=4) == [["kl"]]


def test_off_is_off() -> None:
    assert look(Alarms(load_config(["alarms.kl=off"])), *[AFAR] * 5) == [[]] * 5


def test_every_alarm_has_a_reaction_and_another_one_is_refused() -> None:
    config = load_config([])
    assert {alarm.name for alarm, *_ in Alarms(config)._of_metrics} <= set(vars(config.alarms))
    assert set(vars(config.alarms).values()) <= set(REACTIONS)
    with pytest.raises(ConfigError, match=r"alarms.kl.*off, warn, pause, stop"):
        check_config(load_config(["alarms.kl=halt"]))


def test_a_resumed_run_compares_with_the_steps_before(tmp_path: Path) -> None:
    rows = [{"step": step, "policy/entropy": 1.0} for step in range(1, 12)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"step": 0}, *rows]))
    for state, expected in ((RunState(11, 0), ["entropy"]), (RunState(0, 0), [])):
        alarms = guards_of(tmp_path, state=state).alarms
        found = [alarms.look([], {"step": step, "policy/entropy": 0.01}) for step in range(12, 17)]
        assert [alarm.kind for new in found for alarm in new] == expected


@pytest.mark.parametrize(("name", "error"), [("kl", RlsysError), ("mismatch", SuspectPolicyError)])
def test_stop_ends_the_run_and_a_suspect_policy_by_its_own_error(
    tmp_path: Path, name: str, error: type[RlsysError]
) -> None:
    """`Run.supervise` saves no checkpoint after a SuspectPolicyError."""
    guards = guards_of(tmp_path, f"alarms.{name}=stop")
    for step in range(1, 4):
        asyncio.run(guards.check())
        numbers = {"policy/kl_ref": AFAR, "sync/logprob_abs_diff/mean": 0.1, "sync/k3": 0.1}
        guards.alarms.look([], {"step": step, **numbers})
    with pytest.raises(error, match=rf"^step 3: .* \(alarms.{name}=stop\)$") as caught:
        asyncio.run(guards.check())
    assert type(caught.value) is error


def test_a_pause_lasts_until_its_file_is_removed_and_says_why_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guards, file = guards_of(tmp_path, "alarms.kl=pause"), tmp_path / "paused"
    look(guards.alarms, *[AFAR] * 3)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1500.5, file.unlink)
        await guards.check()
        assert not file.exists()
        await guards.check()  # what still holds is known
        return loop.time()

    with caplog.at_level(logging.WARNING, "rlsys"):
        assert run_virtual(main()) == pytest.approx(1501)
    said = [message for message in caplog.messages if message.startswith(f"paused, until {file} is removed: step 3: ")]
    assert len(said) == 3
    assert caplog.messages[-1] == f"{file} was removed: going on"


def test_the_file_holds_the_reason_and_one_made_by_hand_pauses_too(tmp_path: Path) -> None:
    file = tmp_path / "paused"
    file.write_text("left by a run that was killed")
    guards = guards_of(tmp_path, "alarms.unscored=pause", "scoring.max_unscored_steps=1")
    seen = []

    async def check() -> None:
        asyncio.get_running_loop().call_later(5.0, lambda: (seen.append(file.read_text()), file.unlink()))
        await guards.check()

    asyncio.run(guards.check())  # a new start goes on
    guards.rewards.record(1, "the service is down")
    run_virtual(check())
    assert seen == ["1 times in a row (scoring.max_unscored_steps=1): the service is down\n"]
    asyncio.run(guards.check())  # whoever removed the file has repaired the service: counted from 0 again
    file.touch()
    run_virtual(check())
    assert seen[1:] == [""]
