"""The defaults of rlsys that an import is compared with."""

from __future__ import annotations

from omegaconf import OmegaConf

from rlsys.commands.importers import our_defaults
from rlsys.config.schema import Config


def test_defaults_are_those_of_a_run_that_sets_nothing() -> None:
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    found = our_defaults.defaults()
    assert found["learner"] == schema["learner"]
    assert found["algorithm"]["kl"]["coef"] == 0.04  # the group `algorithm: grpo`
    assert our_defaults.look_up("algorithm.policy_loss.clip_low", found) == 0.2  # the function's own
    assert our_defaults.look_up("algorithm.policy_loss.no_such", found) is our_defaults.MISSING


def test_differences_leave_out_the_defaults() -> None:
    written = {
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28},
        "algorithm.kl.coef": 0.04,
        "learner.betas": (0.9, 0.999),
        "train.num_steps": 7,
        "seed": 0,
    }
    assert our_defaults.differences(written) == {
        "train.num_steps": 7,
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_high": 0.28},
    }


def test_differences_are_in_the_order_of_the_schema() -> None:
    written = {"rewards": [], "algorithm.kl.coef": 0.5, "train.prompts_per_step": 7, "train.num_steps": 9, "seed": 3}
    ordered = ["seed", "train.num_steps", "train.prompts_per_step", "algorithm.kl.coef", "rewards"]
    assert list(our_defaults.differences(written)) == ordered


def test_options_of_a_function_are_gathered_when_the_function_has_them() -> None:
    written = {
        "algorithm.policy_loss.clip_high": 0.28,
        "algorithm.policy_loss.ratio_max": 5.0,
        "algorithm.policy_loss.name": "gspo",
        "algorithm.advantage": {"name": "gae"},
        "algorithm.advantage.lam": 0.9,
        "seed": 1,
    }
    our_defaults.gather_function_options(written)
    assert written == {
        "algorithm.policy_loss": {"name": "gspo", "clip_high": 0.28},
        "algorithm.advantage": {"name": "gae", "lam": 0.9},
        "seed": 1,
    }
