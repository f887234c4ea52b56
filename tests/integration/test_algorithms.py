"""Every preset, and what presets do not set, for a few real steps: one Ray, one set of engines, learner and critic.

Between two of them what depends on the algorithm is exchanged and the models are put back to where they began.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.algorithms.requirements import needs_critic
from rlsys.build.run import build_run
from rlsys.config.compose import load_config
from rlsys.config.overrides import config_dir
from rlsys.errors import RlsysError
from rlsys.learner.setup import PolicySetup
from rlsys.metrics.display import Display
from rlsys.preflight.checks import check_config
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.metrics import MetricsWriter
from rlsys.weights.from_config import broadcaster_of
from tests.integration.runs import SMALL, OpenRun, call_worker, read_metrics, small_run

PRESETS = sorted(path.stem for path in (config_dir() / "algorithm").glob("*.yaml"))
STEPS = 5
REWARD = """
import json
from pathlib import Path

SPOILED = Path(__file__).parent / "spoiled.json"


def even(completions, trainer_state, **_):
    rewards = [float(len(completion) % 2 == 0) for completion in completions]
    steps = json.loads(SPOILED.read_text()) if SPOILED.exists() else {}
    if steps.get(str(trainer_state.global_step)) == "broken":
        raise ValueError("the service is down")
    if str(trainer_state.global_step) in steps:  # once in that step
        del steps[str(trainer_state.global_step)]
        SPOILED.write_text(json.dumps(steps))
        rewards[0] = float("nan")
    return rewards
"""
COMMON = ("critic.lr=1e-2", "train.samples_per_prompt=4")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRun]:
    """With everything that any algorithm asks for: a reference and a critic."""
    folder = tmp_path_factory.mktemp("algorithms")
    (folder / "even.py").write_text(REWARD)
    reward = f"rewards=[{{name: {folder}/even.py:even}}]"
    with small_run(folder, ["algorithm=ppo", f"train.num_steps={STEPS}", reward, *COMMON]) as opened:
        reference = opened.run.roles.reference
        assert reference is not None
        reference._is_initial = False  # else it would write nothing
        opened.wait(opened.run.learners.save(str(folder)))
        opened.wait(reference.save(str(folder)))
        yield opened


@pytest.fixture(autouse=True)
def _as_at_the_start(shared: OpenRun) -> None:
    (shared.folder.parent / "spoiled.json").unlink(missing_ok=True)
    folder = str(shared.folder.parent)
    shared.wait(shared.run.learners.load(folder, {}))
    shared.wait(shared.run.reference.load(folder))


def switched(shared: OpenRun, folder: Path, overrides: Sequence[str]) -> OpenRun:
    """The shared workers under another algorithm, logging into `folder`."""
    run = shared.run
    config = load_config([*SMALL, *COMMON, f"train.num_steps={STEPS}", *overrides])
    check_config(config)
    config.rewards = run.prepared.config.rewards
    prepared = replace(run.prepared, config=config)
    setup = replace(
        PolicySetup.from_config(config, prepared.model_path, prepared.max_tokens), learner=run.prepared.config.learner
    )
    roles = run.roles
    for worker in roles.policy._workers.values():
        call_worker(worker, lambda learner: learner._configure(setup))
    assert roles.reference is not None
    for worker in roles.reference._crew.workers.values():
        call_worker(worker, _divergence(config.algorithm.kl.name))
    roles.reference._refresh = config.algorithm.refresh
    used = replace(
        roles,
        critic=roles.critic if needs_critic(config) else None,
        reference=roles.reference if config.algorithm.kl.coef > 0 else None,
    )
    state = RunState(0, run.prompts.cursor)
    log = MetricsWriter(folder, config.logging)
    display = Display(STEPS, live=False)
    broadcaster = broadcaster_of(config, used.policy, used.rollout, used.cluster.calls)
    return OpenRun(build_run(prepared, folder, used, broadcaster, state, log=log, display=display), folder)


def _divergence(name: str) -> Any:
    def change(worker: Any) -> None:
        from rlsys.algorithms import kl

        worker._divergence = kl.registry.get(name)

    return change


def trained(run: OpenRun, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """The metrics of a few steps, which every algorithm must have in common."""
    before = weights(run)
    other = switched(run, folder, overrides)
    other.train()
    rows = read_metrics(folder)[1:]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    learned = [row for row in rows if "policy/loss" in row]
    # Where groups are dropped a step can be left with nothing to train.
    assert len(learned) == STEPS or (learned and "algorithm.groups.zero_variance=drop" in overrides)
    for row in learned:
        assert row["sync/logprob_abs_diff/p999"] < 1e-4
        assert math.isfinite(row["policy/loss"])
        assert math.isfinite(row["policy/grad_norm"])
        assert row["policy/not_applied"] == row["nonfinite/trajectories"] == 0
    after = weights(run)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    return rows


def weights(run: OpenRun) -> dict[str, torch.Tensor]:
    import ray

    # SMALL's model fits into the first part.
    ranks, part = run.run.roles.policy.begin_read_weights(0)
    assert ray.get(next(iter(ranks.values())))
    return ray.get(part)


@pytest.mark.parametrize("preset", PRESETS)
def test_five_steps_of_every_preset(shared: OpenRun, tmp_path: Path, preset: str) -> None:
    options = {
        "grpo_passk": ["algorithm.advantage.k=2"],  # fewer than the four samples
        "kl_cov": ["train.minibatches_per_step=2"],  # it needs a policy that has moved
    }.get(preset, [])
    rows = trained(shared, tmp_path, f"algorithm={preset}", *options)
    config = load_config(["experiment=quickstart", f"algorithm={preset}"])
    assert all((row["policy/kl_ref"] is not None) == (config.algorithm.kl.coef > 0) for row in rows)
    assert all(("critic/loss" in row) == (preset == "ppo") for row in rows)
    if preset in ("grpo", "gspo", "rloo"):  # on policy in a step's only update
        assert all(row["policy/clip_fraction"] == 0 for row in rows)


VARIANTS: dict[str, list[str]] = {
    "corrections": ["algorithm.corrections=[{name: truncate},{name: mask,level: geometric,weigh: false},{name: opsm}]"],
    "old from the engine": ["train.old_logprobs=engine"],
    "no ratio": ["train.old_logprobs=none"],
    "minibatches and passes": ["train.minibatches_per_step=2", "train.updates_per_step=2"],
    "local mean": ["algorithm.aggregation={name: local_token_mean}", "learner.microbatch_tokens=128"],
    "prompt mean": ["algorithm.aggregation={name: prompt_mean}"],
    "dropped groups": ["algorithm.groups.zero_variance=drop", "algorithm.groups.mask_truncated=true"],
    "entropy": [
        "algorithm.entropy.coef=0.01",
        "algorithm.entropy.target=9.0",  # never reached: always applied
        "algorithm.entropy.top_quantile=0.5",
    ],
    "adaptive KL and refresh": [
        "algorithm.kl.coef=0.1",
        "algorithm.kl.target=1e-9",
        "algorithm.kl.horizon=100",
        "algorithm.kl.unbiased=true",
        "algorithm.refresh.every=2",
        "algorithm.refresh.alpha=1.0",
    ],
    "critic warm-up": ["algorithm=ppo", "train.critic_warmup_steps=2"],
}


def variant(run: OpenRun, folder: Path, name: str) -> list[dict[str, Any]]:
    return trained(run, folder, "~algorithm", *VARIANTS[name])


def test_corrections_are_counted(shared: OpenRun, tmp_path: Path) -> None:
    for row in variant(shared, tmp_path, "corrections"):
        # Engine and learner agree: every weight is 1 but for rounding, and nothing is masked.
        assert row["correction/ratio/mean"] == pytest.approx(1, abs=1e-3)
        assert row["correction/ratio/max"] == pytest.approx(1, abs=1e-3)
        assert row["correction/weight/mean"] == pytest.approx(1, abs=1e-3)
        assert row["correction/effective_sample_fraction"] == pytest.approx(1, abs=1e-3)
        assert row["correction/masked_fraction"] == 0


@pytest.mark.parametrize("name", ["old from the engine", "no ratio", "local mean", "prompt mean", "dropped groups"])
def test_five_steps_of_a_variant(shared: OpenRun, tmp_path: Path, name: str) -> None:
    variant(shared, tmp_path, name)


def test_two_minibatches_twice_leave_the_old_policy_behind(shared: OpenRun, tmp_path: Path) -> None:
    rows = variant(shared, tmp_path, "minibatches and passes")
    assert any(row["policy/clip_fraction"] > 0 for row in rows)


def test_an_entropy_bonus_that_grows(shared: OpenRun, tmp_path: Path) -> None:
    rows = variant(shared, tmp_path, "entropy")
    assert [row["policy/entropy_coef"] for row in rows] == pytest.approx([0.01 + 0.005 * k for k in range(STEPS)])


def test_a_kl_coefficient_that_grows_and_a_reference_that_follows(shared: OpenRun, tmp_path: Path) -> None:
    rows = variant(shared, tmp_path, "adaptive KL and refresh")
    # 16 trajectories a step over a horizon of 100. No KL in step 1, far above its target in step 2: 1 -+ 0.2 * 0.16.
    assert rows[1]["policy/kl_coef"] == pytest.approx(0.1 * 0.968)
    assert rows[2]["policy/kl_coef"] == pytest.approx(0.1 * 0.968 * 1.032)
    # After steps 2 and 4 the reference is the policy: the KL of steps 3 and 5 is that of rounding.
    assert rows[2]["policy/kl_ref"] < 1e-6 < rows[1]["policy/kl_ref"]
    assert rows[4]["policy/kl_ref"] < 1e-6 < rows[3]["policy/kl_ref"]


def test_the_critic_warms_up_alone(shared: OpenRun, tmp_path: Path) -> None:
    other = switched(shared, tmp_path, VARIANTS["critic warm-up"])
    other.train()
    rows = read_metrics(tmp_path)[1:]
    assert ["policy/loss" in row for row in rows] == [False, False, True, True, True]
    assert all(row["critic/loss"] > 0 and "critic/explained_variance" in row for row in rows)


def spoil_rewards(run: OpenRun, steps: Sequence[int]) -> None:
    """One reward in each of these steps is NaN."""
    (run.folder.parent / "spoiled.json").write_text(json.dumps({str(step): True for step in steps}))


def test_a_reward_that_is_not_finite_costs_the_step(shared: OpenRun, tmp_path: Path) -> None:
    other = switched(shared, tmp_path, ["~algorithm"])
    spoil_rewards(shared, [2])
    other.train()
    rows = read_metrics(tmp_path)[1:]
    assert [row["nonfinite/trajectories"] for row in rows] == [0, 1, 0, 0, 0]
    assert [row["nonfinite/steps"] for row in rows] == [0, 1, 1, 1, 1]
    assert ["policy/loss" in row for row in rows] == [True, False, True, True, True]
    dumped = json.loads((tmp_path / "nonfinite" / "step-000002.jsonl").read_text())
    assert dumped["what"] == "reward"
    assert "nan" in dumped["details"]["even"]
    assert len(dumped["token_ids"]) == len(dumped["behavior_logprobs"])


def test_bad_steps_in_a_row_end_the_run(shared: OpenRun, tmp_path: Path) -> None:
    other = switched(shared, tmp_path, ["~algorithm", "train.max_nonfinite_steps=2"])
    spoil_rewards(shared, [2, 3, 4])
    with pytest.raises(RlsysError, match="2 steps in a row met NaN or infinity"):
        other.train()
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_a_step_without_rewards_trains_nothing_and_several_end_the_run(shared: OpenRun, tmp_path: Path) -> None:
    other = switched(shared, tmp_path, ["algorithm=ppo", "train.max_staleness=0", "scoring.max_unscored_steps=2"])
    (shared.folder.parent / "spoiled.json").write_text(json.dumps({"2": "broken", "4": "broken", "5": "broken"}))
    with pytest.raises(RlsysError, match=r"2 times in a row .*no trajectory has a valid reward(.|\n)*service is down"):
        other.train()
    rows = read_metrics(tmp_path)[1:]
    assert ["policy/loss" in row for row in rows] == [True, False, True, False, False]
    assert [row["reward/unscored_steps"] for row in rows] == [0, 1, 1, 2, 3]
    assert [row.get("reward/even/error", 0) for row in rows] == [0, 16, 0, 16, 16]


def spoil_logprobs(learner: Any) -> None:
    """The first row of the next forward has a NaN."""
    original = learner._forward

    def forward(batch: Any, *, with_entropy_gradient: bool) -> Any:
        learner._forward = original
        logprobs, entropy = original(batch, with_entropy_gradient=with_entropy_gradient)
        spoiled = torch.zeros_like(logprobs)
        spoiled[0, batch.loss_mask[0].nonzero()[0]] = float("nan")
        return logprobs + spoiled, entropy

    learner._forward = forward


def spoil_gradient(learner: Any) -> None:
    """The next backward leaves an infinity in one gradient, though every loss was finite."""
    parameter = next(iter(learner._engine.module.parameters()))

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient + float("inf")

    handle = parameter.register_hook(hook)


@pytest.mark.parametrize(
    ("spoil", "what", "count"),
    [(spoil_logprobs, "log-probability or advantage", 1), (spoil_gradient, "gradient", 16)],
    ids=["log-probability", "gradient"],
)
def test_what_the_learner_computes_and_is_not_finite_changes_no_weight(
    shared: OpenRun, tmp_path: Path, spoil: Any, what: str, count: int
) -> None:
    other = switched(shared, tmp_path, ["~algorithm", "train.num_steps=1"])
    before = weights(shared)
    call_worker(next(iter(shared.run.roles.policy._workers.values())), spoil)
    other.train()
    row = read_metrics(tmp_path)[1]
    assert (row["policy/not_applied"], row["nonfinite/trajectories"]) == (1, count)
    lines = (tmp_path / "nonfinite" / "step-000001.jsonl").read_text().splitlines()
    assert {json.loads(line)["what"] for line in lines} == {what}
    after = weights(shared)
    assert all(torch.equal(after[name], before[name]) for name in before)
    # The next step trains as if nothing had happened: no NaN is left in gradients or moments.
    trained(shared, tmp_path / "next", "~algorithm")
