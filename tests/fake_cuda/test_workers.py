"""A reference worker and a reward model on an imaginary GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlsys.config.compose import load_config
from rlsys.reference.worker import ReferenceSetup, ReferenceWorker
from rlsys.rewards.entry import bind_reward
from tests.fake_cuda.gpu import FakeGpu
from tests.fake_cuda.test_learner import TRAJECTORIES


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_reference_scores_and_follows_the_policy(tiny: Path, tmp_path: Path, dtype: str) -> None:
    config = load_config(["cluster.num_gpus=1", f"learner.dtype={dtype}", "algorithm.kl.apply_to=reward"])
    with FakeGpu():
        worker = ReferenceWorker(ReferenceSetup.from_config(config, str(tiny), 64))
        assert worker.placement() == f"shared_prompt in {dtype} on imaginary GPU"
        sums, first, second = worker.logprobs([[(0, 0), (0, 1)], [(0, 2), (0, 3)]], TRAJECTORIES)
        for name, parameter in worker._policy.hf.named_parameters():
            worker.stage({name: torch.zeros(parameter.shape)})  # read from the learner, to the CPU
        worker.blend(0.5)
        worker.save(str(tmp_path))
        worker.load(str(tmp_path))
    assert [len(group) for group in sums] == [2, 2]
    assert [len(row) for row in (*first, *second)] == [t.num_tokens for t in TRAJECTORIES]
    assert {p.device for p in worker._policy.parameters()} == {torch.device("cuda", 0)}


def test_a_reward_model_takes_the_gpu_that_it_sees(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tiny, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with FakeGpu():
        function = bind_reward({"name": "reward_model", "model": str(tmp_path), "dtype": "bfloat16"})
        scores = function(prompts=["a", "bc"], completions=["de", "f"])
    assert scores == [0.0, 0.0]
