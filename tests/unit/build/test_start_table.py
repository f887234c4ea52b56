"""The table of what a run uses, against what the roles are given."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.build.run import log_placement
from rlsys.build.start_table import MAX_CHARACTERS, start_table
from rlsys.config.compose import load_config
from rlsys.models.kernels.logits import LogitTransform
from rlsys.models.traits import Traits
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, so that a test may change its files."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def prepared(model: Path, *overrides: str, prompt: Any = "3+1=") -> Prepared:
    data = model.parent / "rows.jsonl"
    data.write_text(json.dumps({"prompt": prompt, "answer": "4"}) + "\n")
    own = [f"model.path={model}", f"data.train={data}", "data.eval=null", "rollout.max_response_tokens=8"]
    return prepare(load_config([*own, *overrides]))


def rows(model: Path, *overrides: str, **options: Any) -> dict[str, str]:
    return dict(start_table(prepared(model, *overrides, **options)))


def test_every_row_is_there_and_says_what_is_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made = prepared(model)
    table, ids = dict(start_table(made)), made.train_prompts[0].token_ids.tolist()
    assert list(table) == [
        *("model", "stop tokens", "template", "first prompt", "its ids", "context", "sampling", "evaluation"),
        *("accuracy", "ignored", "no effect", "dtype", "attention", "workers", "devices"),
    ]
    assert all(table.values())
    assert table["model"] == str(model)
    (stop,) = made.stop_tokens
    assert table["stop tokens"].startswith(f"'<end>' {stop.id} (")
    assert all(source in table["stop tokens"] for source in stop.sources)
    assert table["template"] == "none: the text of the row as it is"
    assert table["first prompt"] == "'3+1='"
    assert table["its ids"] == f"{' '.join(map(str, ids))} (4 tokens)"
    assert table["context"].startswith("at most 12 tokens: prompt 4, response 8; the model takes ")
    assert table["ignored"] == "nothing in the model's own files"
    assert table["no effect"] == "no option that is set"
    assert table["workers"] == "rollout 1 (tensor parallel 1), learner 1 (ZeRO 1), reference 1, scoring 1"
    assert table["devices"] == "CPUs only, on a local Ray; new weights travel by gloo"


def test_a_chat_template_is_seen_as_the_model_sees_it(model: Path) -> None:
    table = rows(model, "data.chat_template=true", "data.prompt_template='Add. {{ content }}'")
    assert table["template"] == "data.prompt_template, then the tokenizer's chat template"
    assert "Add. 3+1=" in table["first prompt"]
    assert "<assistant>" in table["first prompt"]
    own = "model.chat_template='{% for m in messages %}{{ m.content }}{% endfor %}='"
    table = rows(model, "data.chat_template=true", own)
    assert (table["template"], table["first prompt"]) == ("model.chat_template", "'3+1=='")


def test_the_middle_of_a_long_prompt_is_left_out(model: Path) -> None:
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 1024}))
    table = rows(model, "rollout.max_response_tokens=1", "learner.microbatch_tokens=4096", prompt="1+" * 200 + "2=")
    assert table["its ids"].endswith(" (402 tokens)")
    assert table["its ids"].count(" ") < 60
    assert " ... " in table["its ids"]
    assert len(table["first prompt"]) < MAX_CHARACTERS + 10


def test_settings_of_the_model_s_own_files_that_are_not_followed_are_named(model: Path) -> None:
    path = model / "generation_config.json"
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 2048, "repetition_penalty": 1.1}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sampling, "use_cache": True}))
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16", "attention_dropout": 0.1}))
    ignored = rows(model)["ignored"]
    named = ", ".join(f"{name} {value}" for name, value in sorted(sampling.items()))
    assert f"generation_config.json: {named} (rollout.* decides)" in ignored
    assert "config.json: attention_dropout 0.1 (trained without dropout), dtype bfloat16 (learner.dtype" in ignored
    assert rows(model)["dtype"] == "learner float32, engines float32, optimizer float32, saved bfloat16"
    path.unlink()
    assert "generation_config.json" not in rows(model)["ignored"]


@pytest.mark.parametrize(
    ("overrides", "label", "text"),
    [
        (["rollout.ignore_eos=true"], "stop tokens", "none: rollout.ignore_eos=true"),
        (["rollout.stop=['=']"], "stop tokens", "(rollout.stop)"),
        (["eval.every=5"], "evaluation", "none, for data.eval=null"),
        (["data.eval={name: addition, limit: 4}", "eval.every=0"], "evaluation", "none, for eval.every=0"),
        (
            ["data.eval={name: addition, limit: 4}", "eval.every=5", "eval.num_samples=4"],
            "evaluation",
            "greedy, and 4 at temperature 1, every 5 steps",
        ),
        (["rewards=[{name: exact_match}]"], "accuracy", "judged by exact_match, from 1 on"),
        (["rollout.temperature=0.7"], "sampling", "temperature 0.7"),
        (["learner.dtype=bfloat16"], "dtype", "learner bfloat16, engines bfloat16"),
        (["learner.packing=padded", "algorithm.kl.coef=0"], "attention", "learner padded"),
        (["algorithm=ppo", "critic.packing=packed"], "attention", "learner shared_prompt, critic packed"),
        (["checkpoint.dtype=bfloat16"], "dtype", "saved bfloat16"),
        (["algorithm=ppo", "algorithm.kl.coef=0"], "workers", "critic 1 (ZeRO 1), reference none"),
        (["learner.lora.rank=4", "algorithm.kl.coef=0.1"], "workers", "reference: the learner without its adapter"),
        (["learner.num_workers=2", "learner.zero_stage=3"], "workers", "learner 2 (ZeRO 3)"),
        (
            [
                "learner.lora.alpha=8",
                "learner.lora.use_dora=true",
                "logging.rollouts_every=0",
                "logging.token_groups=2",
            ],
            "no effect",
            "learner.lora.alpha, learner.lora.use_dora (without learner.lora.rank > 0); logging.token_groups (without "
            "logging.rollouts_every > 0)",
        ),
        (["cluster.num_gpus=3"], "devices", "3 GPUs, on a local Ray; new weights travel by nccl"),
        (["cluster.address=auto"], "devices", "the Ray cluster auto (cluster.address)"),
    ],
)
def test_what_is_asked_for_is_what_is_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], label: str, text: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert text in rows(model, *overrides)[label]


@pytest.mark.parametrize(
    ("traits", "text"),
    [
        (None, "learner auto, reference auto (the trial is on the workers"),
        (Traits("sdpa", LogitTransform(), "a layer", None), "learner padded, reference padded (not packed: a layer)"),
    ],
)
def test_a_layout_that_is_not_the_best_one_is_explained(
    model: Path, monkeypatch: pytest.MonkeyPatch, traits: Traits | None, text: str
) -> None:
    made = prepared(model)
    monkeypatch.setattr("rlsys.build.start_table.folder_traits", lambda *_, **__: traits)
    assert dict(start_table(made))["attention"].startswith(text)


def test_what_only_workers_know_is_one_line_after_their_start(caplog: pytest.LogCaptureFixture) -> None:
    async def gather(calls: Any, *, deadline_s: float, **_: Any) -> Any:
        assert deadline_s == config.cluster.startup_deadline_s
        return calls

    def role(**answers: str) -> Any:
        return SimpleNamespace(begin_placement=lambda: {f"learner/{rank[1:]}": text for rank, text in answers.items()})

    config = load_config([])
    cluster: Any = SimpleNamespace(calls=SimpleNamespace(gather=gather))
    with caplog.at_level(logging.INFO, "rlsys"):
        asyncio.run(log_placement(cluster, config, role(_0="padded", _1="padded"), None, role(_2="shared_prompt")))
    assert caplog.messages == ["ready: learner/0, learner/1: padded; learner/2: shared_prompt"]
