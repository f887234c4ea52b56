"""What a person reads while a run goes."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from rlsys.metrics.display import Display, plain_line, show_table


def test_a_whole_line() -> None:
    metrics = {
        "step": 7,
        "reward/total/mean": 0.51249,
        "eval/accuracy": 0.75,
        "policy/kl_ref": 0.00123,
        "throughput/tokens_per_s": 1234.5,
        "time/rollout_s": 1.234,
        "time/scoring_s": 0.1,
        "time/reference_s": 0.0,
        "time/update_s": 2.0,
        "time/broadcast_s": 0.05,
        "time/step_s": 3.4,
    }
    assert plain_line(metrics, num_steps=300, eta_s=3725.9) == (
        "step 7/300  reward 0.512  accuracy 0.750  kl 0.0012  tokens/s 1234  "
        "3.40 s (rollout 1.23, scoring 0.10, reference 0.00, update 2.00, broadcast 0.05)  ETA 1 h 2 min"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert plain_line({"step": 0, "policy/kl_ref": None}, num_steps=5, eta_s=None) == "step 0/5"
    assert plain_line({"step": 2, "time/step_s": 1.5}, num_steps=5, eta_s=61.0) == "step 2/5  ETA 1 min 1 s"


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rlsys")


def test_without_a_terminal_it_is_one_line_per_step(caplog: pytest.LogCaptureFixture) -> None:
    with Display(3, live=False) as display:
        display.step({"step": 1, "reward/total/mean": 0.5})
        display.step({"step": 2, "reward/total/mean": None})
    first, second = caplog.messages
    assert first == "step 1/3  reward 0.500"
    assert second.startswith("step 2/3  ETA 0.")


def test_warnings_that_hold_stand_below_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("rlsys.metrics.display.terminal", lambda: console)
    shown = []
    with Display(3, live=True) as display:
        for texts in (["reward 'format' is 0"], []):
            display.warn(texts)
            display.step({"step": 1})
            with console.capture() as capture:
                console.print(display._live.renderable)
            shown.append("warning: reward 'format' is 0" in capture.get())
    assert shown == [True, False]


ROWS = (("stop tokens", "'<end>' 1 [config.json]"), ("dtype", "float32"))


def test_a_table_of_labels_and_texts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr("rlsys.metrics.display.terminal", lambda: console)
    show_table("what is used", ROWS)
    assert caplog.messages == ["what is used\nstop tokens  '<end>' 1 [config.json]\ndtype        float32"]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with console.capture() as capture:
        show_table("what is used", ROWS)
    assert "'<end>' 1 [config.json]" in capture.get()  # brackets are no markup
    assert len(caplog.messages) == 1


def test_the_rest_is_estimated_from_when_steps_ended(caplog: pytest.LogCaptureFixture) -> None:
    with Display(10, live=False) as display:
        for step, at in ((3, 100.0), (4, 160.0), (6, 250.0), (2, 300.0), (3, 310.0)):
            display.step({"step": step}, at=at)
    estimates = [line.split("  ")[1:] for line in caplog.messages]
    # 60 s for each of 6 more; 50 s for each of 4 more; then a resumed run is back at step 2 and takes 10 s for one.
    assert estimates == [[], ["ETA 6 min 0 s"], ["ETA 3 min 20 s"], [], ["ETA 1 min 10 s"]]


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_shows_a_table_with_every_number_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setattr("rlsys.metrics.display.terminal", lambda: Console(width=columns, force_terminal=True))
    metrics = {"step": 1, "reward/total/mean": 0.5, "policy/kl_ref": 0.0012, "policy/entropy": 1.25}
    metrics |= {"throughput/tokens_per_s": 12345.0, "time/rollout_s": 9.87, "time/step_s": 13.4}
    with Display(3) as display:
        display.step(metrics)
    printed = capsys.readouterr().out
    shown = ["step 1/3", "0.500", "0.0012", "1.250", "12345", "9.87", "13.40"]
    assert [part for part in shown if part not in printed] == []
