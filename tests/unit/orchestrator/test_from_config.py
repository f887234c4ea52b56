"""The orchestrator's parts as the configuration asks for them, where it takes more than a look."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.config.algorithm_schema import GroupsConfig
from rlsys.config.compose import load_config
from rlsys.config.schema import Config, TrainConfig
from rlsys.orchestrator.from_config import admission_of, sampling_params_of


@pytest.mark.parametrize(("algorithm", "wanted"), [("grpo", False), ("remax", True)])
def test_a_greedy_response_only_where_the_estimator_asks(algorithm: str, wanted: bool) -> None:
    sampling_params = sampling_params_of(load_config([f"algorithm={algorithm}", "train.samples_per_prompt=5"]))
    drawn = [(sampling.temperature, sampling.samples_per_prompt) for sampling in sampling_params]
    assert drawn == ([(1.0, 5), (0.0, 1)] if wanted else [(1.0, 5)])


@given(
    prompts=st.integers(1, 6),
    tries=st.integers(1, 5),
    oversample=st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.0]),
    max_staleness=st.integers(0, 2),
    share=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_a_step_draws_as_many_prompts_as_it_may_and_gives_up_only_then(
    prompts: int, tries: int, oversample: float, max_staleness: int, share: float, seed: int
) -> None:
    """`algorithm.groups.max_tries` counts every prompt, also those that oversampling draws at once."""
    config, limit = Config(), tries * prompts
    config.train = TrainConfig(num_steps=1000, prompts_per_step=prompts, max_staleness=max_staleness)
    config.algorithm.groups = GroupsConfig("resample", min(oversample, tries), tries)
    admission, chance = admission_of(config, 0), random.Random(seed)
    running: list[int] = []

    def draw() -> int:
        admitted = [admission.admit() for _ in range(admission.capacity())]
        running.extend(admitted)
        return len(admitted)

    # The first steps' own groups, of which sampling ahead starts more than one step's.
    drawn = draw() - max_staleness * prompts
    for step in range(6):
        skipped = admission.num_skipped
        while (taken := admission.take()) is None:
            group = running.pop(chance.randrange(len(running)))
            (admission.reject if chance.random() < share else admission.complete)(group)
            drawn += draw()
        assert drawn <= limit
        gave_up = admission.num_skipped > skipped
        assert max_staleness > 0 or drawn == limit or (not gave_up and len(taken) >= prompts), "it gave up early"
        drawn = draw()
        admission.advance(step + 1)
        drawn += draw()
