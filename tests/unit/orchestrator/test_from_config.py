"""The orchestrator's parts as the configuration asks for them, where it takes more than a look."""

from __future__ import annotations

import pytest

from rlsys.config.compose import load_config
from rlsys.orchestrator.from_config import sampling_params_of


@pytest.mark.parametrize(("algorithm", "wanted"), [("grpo", False), ("remax", True)])
def test_a_greedy_response_only_where_the_estimator_asks(algorithm: str, wanted: bool) -> None:
    sampling_params = sampling_params_of(load_config([f"algorithm={algorithm}", "train.samples_per_prompt=5"]))
    drawn = [(sampling.temperature, sampling.samples_per_prompt) for sampling in sampling_params]
    assert drawn == ([(1.0, 5), (0.0, 1)] if wanted else [(1.0, 5)])
