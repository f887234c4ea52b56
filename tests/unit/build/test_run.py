"""What of a configuration becomes what of a run, where it takes more than a look."""

from __future__ import annotations

import pytest

from rlsys.build.checkpoints import start_coefficients
from rlsys.config.compose import load_config
from rlsys.orchestrator.from_config import sampling_params_of
from rlsys.run_folder.checkpoint import RunState
from rlsys.types import Coefficients

ADAPTIVE = ["algorithm.kl.coef=0.1", "algorithm.kl.target=0.05", "algorithm.entropy.target=0.3"]


def test_adaptive_coefficients_go_on_where_the_checkpoint_left_them() -> None:
    state = RunState(step=7, prompt_cursor=0, kl_coef=0.4, entropy_coef=0.0, entropy_level=0.02)
    assert start_coefficients(load_config(ADAPTIVE), state) == Coefficients(0.4, 0.0, 0.02)
    started = start_coefficients(load_config(ADAPTIVE), RunState(step=0, prompt_cursor=0))
    assert started == Coefficients(0.1, 0.0, 0.0)


def test_a_fixed_coefficient_is_the_configured_one_also_on_resume() -> None:
    state = RunState(step=7, prompt_cursor=0, kl_coef=0.4, entropy_coef=0.02)
    resumed = start_coefficients(load_config(["algorithm.kl.coef=0.1", "algorithm.entropy.coef=0.3"]), state)
    assert (resumed.kl, resumed.entropy) == (0.1, 0.3)


@pytest.mark.parametrize(("algorithm", "wanted"), [("grpo", False), ("remax", True)])
def test_a_greedy_response_only_where_the_estimator_asks(algorithm: str, wanted: bool) -> None:
    sampling_params = sampling_params_of(load_config([f"algorithm={algorithm}", "train.samples_per_prompt=5"]))
    drawn = [(sampling.temperature, sampling.samples_per_prompt) for sampling in sampling_params]
    assert drawn == ([(1.0, 5), (0.0, 1)] if wanted else [(1.0, 5)])
