"""Everything a run needs before Ray starts, or the refusal that names what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import Config, DataConfig, ModelConfig, RolloutConfig
from rlsys.errors import ConfigError, DataError, RlsysError
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared
from rlsys.preflight.stops import StopToken
from rlsys.rollout.setup import EngineSetup

GOOD = {"prompt": "1+1=", "answer": "2"}


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Config:
    """A run on `tmp_path/rows.jsonl` with a model whose context is 64 tokens."""
    data = DataConfig(train=str(tmp_path / "rows.jsonl"), eval=None)
    rollout = RolloutConfig(max_response_tokens=44)
    return Config(model=ModelConfig(path=str(model_folder)), data=data, rollout=rollout)


def write(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    Path(config.data.train).write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(config: Config, kind: type[RlsysError]) -> str:
    with pytest.raises(kind) as caught:
        prepare(config)
    return str(caught.value)


def test_a_good_run(config: Config, model_folder: Path) -> None:
    write(config, [GOOD, {"prompt": "2+2=", "answer": "4"}])
    prepared: Prepared = prepare(config)
    assert prepared.max_tokens == 4 + 44  # the longest prompt and max_response_tokens
    assert prepared.model_path == str(model_folder)
    assert [prompt.text for prompt in prepared.train_prompts] == ["1+1=", "2+2="]
    assert prepared.train_prompts[1].columns == {"answer": "4"}
    assert prepared.eval_sets == []


def test_the_run_s_files_do_not_depend_on_the_folder_it_was_started_in(
    config: Config, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, [GOOD])
    (tmp_path / "around.jinja").write_text("{{ content }}")
    config.data.train, config.data.eval = "rows.jsonl", [{"name": "rows.jsonl", "limit": 1}]
    config.data.prompt_template = "around.jinja"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "model")
    config.model.path, config.model.cache_dir = "model", "models"
    config.model.build.tokenizer.corpus = "rows.jsonl"
    prepared = prepare(config).config
    data, model = prepared.data, prepared.model
    assert (model.path, model.cache_dir) == (f"{tmp_path}/model", f"{tmp_path}/models")
    assert model.build.tokenizer.corpus == f"{tmp_path}/rows.jsonl"
    assert (data.train, data.eval) == (f"{tmp_path}/rows.jsonl", [{"name": f"{tmp_path}/rows.jsonl", "limit": 1}])
    assert data.prompt_template == f"{tmp_path}/around.jinja"


def test_files_in_the_home_folder_and_in_options(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, [GOOD])
    monkeypatch.setenv("HOME", str(tmp_path))
    config.data.train = "~/*.jsonl"
    assert prepare(config).config.data.train == f"{tmp_path}/*.jsonl"
    config.data.train, config.data.options = "json", {"data_files": "~/rows.jsonl"}
    prepared = prepare(config)
    assert prepared.config.data.options == {"data_files": f"{tmp_path}/rows.jsonl"}
    assert [prompt.text for prompt in prepared.train_prompts] == ["1+1="]


@pytest.mark.parametrize("training", [True, False])
def test_training_without_data_is_refused(config: Config, training: bool) -> None:
    config.data.train = None
    if not training:
        config.model.path = None  # it is built from the training rows
    with pytest.raises(ConfigError, match=r"data\.train is null: name a source"):
        prepare(config, training=training)


def test_where_the_corpus_lies_names_no_other_model(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, [GOOD])
    config.model.path, config.model.cache_dir = None, str(tmp_path / "models")
    build = config.model.build
    build.hidden_size, build.num_layers, build.num_heads, build.num_kv_heads, build.intermediate_size = 32, 1, 1, 1, 32
    build.tokenizer.kind, build.tokenizer.vocab_size = "bpe", 300
    (tmp_path / "corpus.txt").write_text("1+1=2\n")
    build.tokenizer.corpus = str(tmp_path / "corpus.txt")
    before = prepare(config).model_path
    (tmp_path / "corpus.txt").rename(tmp_path / "moved.txt")
    build.tokenizer.corpus = str(tmp_path / "moved.txt")
    assert prepare(config).model_path == before


def test_the_held_out_prompts_are_limited(config: Config) -> None:
    write(config, [GOOD] * 5)
    config.data.eval, config.data.eval_limit = config.data.train, 3
    assert [len(part.prompts) for part in prepare(config).eval_sets] == [3]


def test_a_row_without_the_prompt_column(config: Config) -> None:
    write(config, [GOOD, {"promt": "2+2=", "answer": "4"}])
    message = refused(config, DataError)
    said = ["rows.jsonl, line 2", "no prompt column 'prompt'", "promt", "data.prompt_column", "did you mean 'promt'?"]
    assert [part for part in said if part not in message] == []


def test_a_prompt_longer_than_the_context(config: Config) -> None:
    write(config, [GOOD, {"prompt": "1" * 20, "answer": "2"}])
    prepare(config)  # 64 - 44 leaves room for exactly 20 tokens
    write(config, [GOOD, GOOD, {"prompt": "1" * 21, "answer": "2"}])
    message = refused(config, DataError)
    said = ["rows.jsonl, line 3", "21 tokens", "1 to 20", "rollout.max_response_tokens"]
    assert [part for part in said if part not in message] == []


def test_responses_that_leave_no_room_for_a_prompt(config: Config) -> None:
    write(config, [GOOD])
    config.rollout.max_response_tokens = 64
    message = refused(config, ConfigError)
    assert "rollout.max_response_tokens=64 leaves no room for a prompt in the model's context of 64 tokens" in message
    config.rollout.max_response_tokens, config.eval.max_response_tokens = 44, 70
    assert "eval.max_response_tokens=70 leaves no room" in refused(config, ConfigError)


def changed_model(folder: Path, target: Path, **changes: Any) -> str:
    """Copy a model with other keys in its config.json, and without a generation_config.json."""
    shutil.copytree(folder, target)
    (target / "generation_config.json").unlink()
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(target)


@pytest.mark.parametrize("training", [True, False])
def test_a_response_ends_at_the_tokenizer_s_end_that_the_model_s_files_do_not_name(
    config: Config, tmp_path: Path, model_folder: Path, training: bool
) -> None:
    config.model.path = changed_model(model_folder, tmp_path / "model", eos_token_id=3)
    config.rollout.stop = ["\n"]
    config.data.eval = config.data.train
    write(config, [GOOD])
    prepared = prepare(config, training=training)
    assert prepared.stop_tokens == (
        StopToken(3, "<assistant>", ("config.json",)),
        StopToken(1, "<end>", ("tokenizer",)),
        StopToken(100, "\n", ("rollout.stop",)),
    )
    assert EngineSetup.from_prepared(prepared).stop_token_ids == (3, 1, 100)


def test_a_conversation_s_response_ends_where_the_chat_template_ends_a_turn(config: Config) -> None:
    write(config, [GOOD])
    config.model.chat_template = "{% for m in messages %}{{ m.content }}<system>{% endfor %}"
    assert [stop.text for stop in prepare(config).stop_tokens] == ["<end>"]  # a plain prompt has no turns
    config.data.chat_template = True
    assert [stop.text for stop in prepare(config).stop_tokens] == ["<end>", "<system>"]


def test_an_empty_prompt(config: Config) -> None:
    write(config, [{"prompt": "", "answer": "2"}])
    assert "line 1: the prompt has 0 tokens" in refused(config, DataError)


def test_a_file_that_is_not_there(config: Config) -> None:
    message = refused(config, ConfigError)
    assert f"no such file: {config.data.train}" in message


def test_a_file_that_is_no_data(config: Config) -> None:
    Path(config.data.train).write_text("{this is not json\n")
    message = refused(config, DataError)
    assert f"{config.data.train}, line 1: not JSON" in message


def test_a_model_that_is_not_there(config: Config) -> None:
    write(config, [GOOD])
    config.model.path = "./no/such/model"
    assert "model.path './no/such/model': no such folder" in refused(config, ConfigError)


def test_a_reward_without_its_column(config: Config) -> None:
    write(config, [{"prompt": "1+1=", "solution": "2"}])
    assert "reward 'exact_match' needs the column 'answer'" in refused(config, ConfigError)


def test_a_microbatch_smaller_than_a_trajectory(config: Config) -> None:
    write(config, [GOOD])
    config.learner.microbatch_tokens = 47  # 4 + 44 = 48
    assert "learner.microbatch_tokens=47" in refused(config, ConfigError)


def test_a_corpus_that_is_not_there(config: Config, tmp_path: Path) -> None:
    write(config, [GOOD])
    config.model.path = None
    config.model.cache_dir = str(tmp_path / "models")
    config.model.build.tokenizer.kind = "bpe"
    config.model.build.tokenizer.corpus = str(tmp_path / "corpus.txt")
    assert "model.build.tokenizer.corpus: data: no such file" in refused(config, ConfigError)
