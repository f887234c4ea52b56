"""The model's folder from `model.path` or `model.build`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.build_schema import ModelBuild, TokenizerBuild, Warmup
from rlsys.config.schema import ModelConfig
from rlsys.data.loading import LoadedRows
from rlsys.data.sources import Source
from rlsys.errors import ConfigError, DataError
from rlsys.models import resolve as resolve_module
from rlsys.models.resolve import load_tokenizer, model_facts, resolve_model
from tests.unit.conftest import TINY

ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(4)]


@pytest.fixture(autouse=True)
def _log_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rlsys.models")


def resolve(config: ModelConfig, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    train, held_out = [loaded(rows)], [loaded(rows[:1])]
    return Path(resolve_model(config, seed=0, prompt_column="prompt", train=train, held_out=held_out, corpus=rows))


def loaded(rows: Sequence[dict[str, Any]], name: str = "rows.csv") -> LoadedRows:
    return LoadedRows(Source(name), list(rows), range(len(rows)))


def built(cache: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(build=ModelBuild(**TINY, **changes), cache_dir=str(cache))


def test_built_once_then_taken_from_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = resolve(built(tmp_path))
    again = resolve(built(tmp_path))
    assert first == again
    assert len(caplog.messages) == 1
    assert str(first) in caplog.messages[0]
    assert model_facts(str(first)).max_context == TINY["max_context"]
    assert [path.name for path in tmp_path.iterdir()] == [first.name]  # nothing half-written stays behind


def test_two_runs_that_build_the_same_model_take_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, others = resolve_module.save_model, tmp_path / "others"
    theirs = resolve(built(others))

    def save_late(*arguments: Any) -> None:
        save(*arguments)
        shutil.copytree(theirs, tmp_path / theirs.name)  # the other run is done first

    monkeypatch.setattr(resolve_module, "save_model", save_late)
    assert resolve(built(tmp_path)) == tmp_path / theirs.name
    assert {path.name for path in tmp_path.iterdir()} == {"others", theirs.name}


def test_a_cache_that_cannot_be_written_is_named_before_the_building(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"model\.cache_dir=.*file/cache cannot be written \(Not a directory\)"):
        resolve(built(tmp_path / "file" / "cache"))
    assert caplog.messages == []


def test_every_option_and_every_row_names_another_model(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3]["answer"] = "another"
    tokenizer = TokenizerBuild(alphabet="0123456789+=")
    configs = [built(tmp_path), built(tmp_path, tie_word_embeddings=False), built(tmp_path, tokenizer=tokenizer)]
    folders = {*map(resolve, configs), resolve(built(tmp_path), rows=rows)}
    assert len(folders) == 4


def test_another_recipe_names_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve(built(tmp_path))
    monkeypatch.setattr(resolve_module, "RECIPE", resolve_module.RECIPE + 1)
    assert resolve(built(tmp_path)) != before


def test_the_warm_up_logs_its_accuracy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warmup = Warmup(max_steps=60, batch_size=4, lr=3e-3, check_every=5)
    resolve(built(tmp_path, warmup=warmup), rows=ROWS[:1])
    assert caplog.messages[1] == "warming it up by at most 60 supervised steps"
    assert "accuracy 1.000 on 1 held-out" in caplog.messages[2]


def test_warm_up_names_a_row_without_text(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "9+1=", "answer": 10}]
    with pytest.raises(DataError, match=r"rows\.csv, row 5: .*'prompt' and 'answer'"):
        resolve(built(tmp_path, warmup=Warmup(max_steps=1)), rows=rows)


def test_a_prompt_outside_the_alphabet_names_its_source_and_row(tmp_path: Path) -> None:
    parts = [loaded(ROWS, "a.csv"), loaded([*ROWS, {"prompt": "é"}], "b.csv")]
    with pytest.raises(DataError, match=r"b\.csv, row 5: the prompt has \['é'\]"):
        resolve_model(built(tmp_path), seed=0, prompt_column="prompt", train=parts, held_out=[], corpus=[])


def test_a_folder_is_taken_as_it_is(model_folder: Path) -> None:
    assert resolve(ModelConfig(path=str(model_folder))) == model_folder.resolve()


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "some/deep/path"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.path '{path}': no such folder"):
        resolve(ModelConfig(path=path))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without config\.json"):
        resolve(ModelConfig(path=str(tmp_path)))


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"model\.path '.*' has no usable tokenizer"):
        load_tokenizer(str(tmp_path))
