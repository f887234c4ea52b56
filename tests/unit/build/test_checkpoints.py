"""Where a resumed run starts: adaptive coefficients continue, fixed ones are as configured."""

from __future__ import annotations

from dataclasses import replace

from rlsys.build.checkpoints import start_coefficients
from rlsys.config.compose import load_config
from rlsys.run_folder.checkpoint import RunState
from rlsys.types import Coefficients

ADAPTIVE = ["algorithm.kl.coef=0.1", "algorithm.kl.target=0.05", "algorithm.entropy.target=0.3"]


def test_adaptive_coefficients_go_on_where_the_checkpoint_left_them() -> None:
    state = RunState(step=7, prompt_cursor=0, kl_coef=0.4, entropy_coef=0.0, entropy_level=0.02)
    assert start_coefficients(load_config(ADAPTIVE), state) == Coefficients(0.4, 0.0, 0.02)
    started = start_coefficients(load_config(ADAPTIVE), RunState(step=0, prompt_cursor=0))
    assert started == Coefficients(0.1, 0.0, 0.0)


def test_an_adaptive_coefficient_that_is_given_anew_starts_there() -> None:
    then = {"kl": 0.1, "entropy": 0.0}
    state = RunState(step=7, prompt_cursor=0, kl_coef=0.4, entropy_coef=0.02, entropy_level=0.02, started_coef=then)
    assert start_coefficients(load_config(ADAPTIVE), state) == Coefficients(0.4, 0.02, 0.02)
    changed = start_coefficients(load_config([*ADAPTIVE[1:], "algorithm.kl.coef=0.2"]), state)
    assert changed == Coefficients(0.2, 0.02, 0.02)
    with_bonus = load_config([*ADAPTIVE, "algorithm.entropy.coef=0.3"])
    assert start_coefficients(with_bonus, state) == replace(start_coefficients(with_bonus, RunState(0, 0)), kl=0.4)


def test_a_fixed_coefficient_is_the_configured_one_also_on_resume() -> None:
    state = RunState(step=7, prompt_cursor=0, kl_coef=0.4, entropy_coef=0.02)
    resumed = start_coefficients(load_config(["algorithm.kl.coef=0.1", "algorithm.entropy.coef=0.3"]), state)
    assert (resumed.kl, resumed.entropy) == (0.1, 0.3)
