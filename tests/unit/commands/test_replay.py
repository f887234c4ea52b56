"""What `rlsys replay` makes of two records, and which steps it refuses; the replay itself is in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.cli import execute
from rlsys.commands.replay import _report, _why_inexact, compare
from rlsys.errors import ConfigError, RlsysError
from rlsys.learner.fingerprint import Fingerprint
from rlsys.learner.step_dump import StepRecord, UpdateRecord

NAN = float("nan")


def record(loss: float = 1.0, bits: str = "a", norm: float = 2.0, updates: int = 1, weights: str = "w") -> StepRecord:
    gradients = {"first": Fingerprint("same", 1.0, 0.5), "second": Fingerprint(bits, norm, 0.5)}
    return StepRecord({"first": Fingerprint(weights, 1.0, 0.5)}, [UpdateRecord(loss, NAN, gradients)] * updates)


def verdicts(recorded: StepRecord, replayed: StepRecord, tolerance: float = 0.0) -> list[str]:
    return [row.verdict for row in compare(recorded, replayed, tolerance)]


def test_bits_decide_unless_sums_may_differ() -> None:
    assert verdicts(record(), record()) == ["equal"] * 5
    assert verdicts(record(), record(loss=1.0 + 1e-9, bits="b")) == ["equal", "differs", "equal", "equal", "differs"]
    assert verdicts(record(), record(1.0 + 1e-9, "b"), 1e-3) == ["equal", "near", "equal", "equal", "near"]
    assert verdicts(record(), record(loss=NAN, bits="b", norm=3.0), 1e-3)[1::3] == ["differs", "differs"]


def test_updates_that_were_not_replayed_are_left_out() -> None:
    assert len(verdicts(record(updates=3), record(updates=1), 1e-3)) == 5


def test_the_report_names_the_first_difference_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    _report(list(compare(record(), record(), 0.0)), 7)
    assert capsys.readouterr().out.splitlines() == [
        "weights before the step  1 equal",
        "update 1, loss           equal  1.0",
        "update 1, gradient norm  equal  nan",
        "update 1, gradient       2 equal",
        "step 7 is replayed bit for bit",
    ]
    with pytest.raises(RlsysError, match=r"step 7: 1 of 5 values differ.*update 1, gradient of second: the norm was 2"):
        _report(list(compare(record(), record(bits="b"), 0.0)), 7)
    assert "update 1, gradient       1 equal, 1 differs" in capsys.readouterr().out
    with pytest.raises(RlsysError, match=r"2 of 5 values differ.* is weights before the step of first"):
        _report(list(compare(record(), record(bits="b", weights="x"), 0.0)), 7)
    _report(list(compare(record(), record(bits="b"), 1e-3)), 7)
    assert "step 7 is replayed within the tolerance" in capsys.readouterr().out


def test_reasons_for_a_tolerance_are_named() -> None:
    here = {"device": "cpu", "instructions": "AVX2", "threads": 2, "torch": "2.13"}
    assert _why_inexact({"num_ranks": 1, "machine": here}, here) == []
    then = {"num_ranks": 2, "machine": here | {"instructions": "AVX512"}}
    assert _why_inexact(then, here) == ["instructions AVX512, here AVX2", "2 ranks, here one process"]
    assert _why_inexact({"num_ranks": 1, "machine": here | {"device": "cuda"}}, here) == ["device cuda, here cpu"]


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"step 3 cannot be replayed, and no other\. .*logging.replay=true"):
        execute(["replay", str(tmp_path), "--step", "3"])
    (tmp_path / "replay" / "step-000001").mkdir(parents=True)
    (tmp_path / "replay" / "step-000001" / "record.json").touch()
    with pytest.raises(ConfigError, match="step 3 cannot be replayed, these can: 1"):
        execute(["replay", str(tmp_path), "--step", "3"])
