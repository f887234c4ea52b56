"""What may be written of a configuration: requests instead of values of the environment, readable `${`, no folders."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlsys.config.compose import load_config
from rlsys.config.schema import Config
from rlsys.config.written import as_written, publishable, remember_environment, shown, with_requests
from rlsys.run_folder.folder import RunFolder


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2")
    monkeypatch.setenv("EMPTY", "")


REWARDS = "rewards=[{name: exact_match}, {name: http, url: 'http://h/${oc.env:PW}', header: '${oc.env:PW}'}]"


def test_text_of_the_environment_is_used_by_value_and_written_by_name() -> None:
    config = load_config([REWARDS, "model.path=${oc.env:PW}", "data.system_prompt='to ${model.path}'"])
    assert config.rewards[1] == {"name": "http", "url": "http://h/hunter2", "header": "hunter2"}
    assert (config.model.path, config.data.system_prompt) == ("hunter2", "to hunter2")
    for passed in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        written = as_written(passed)
        assert "hunter2" not in str(written)
        assert written.rewards[1] == {"name": "http", "url": "http://h/${oc.env:PW}", "header": "${oc.env:PW}"}
        assert (written.model.path, written.data.system_prompt) == ("${oc.env:PW}", "to ${oc.env:PW}")


@pytest.mark.parametrize(
    ("source", "value", "written"),
    [
        ("${ oc.env : PW }", "hunter2", "${oc.env:PW}"),
        ("${oc.${kind}:PW}", "hunter2", "${oc.env:PW}"),
        ('${oc.env:NONE,"it\'s"}', "it's", r"${oc.env:NONE,'it\'s'}"),
        (r"${oc.env:NONE,'a\\'}", "a\\", r"${oc.env:NONE,'a\\'}"),
        ("${oc.env:NONE,null}x", "Nonex", "${oc.env:NONE,null}x"),
        ("${oc.env:NONE,${oc.env:PW}}", "hunter2", "${oc.env:NONE,'${oc.env:PW}'}"),
        (r"\${a} ${oc.env:PW}", "${a} hunter2", r"\${a} ${oc.env:PW}"),
        ("${oc.decode:${oc.env:PW}}", "hunter2", "${oc.decode:${oc.env:PW}}"),
        ("<${other}>", "<hunter2>", "<${oc.env:PW}>"),
        ("${kind}", "env", "env"),
    ],
)
def test_every_form_of_a_request_is_written_and_read_back(source: str, value: str, written: str) -> None:
    asked = {"kind": "env", "other": "${oc.env:PW}", "x": source}
    found = remember_environment(OmegaConf.to_container(OmegaConf.create(asked), resolve=True), asked)
    assert (found["x"], as_written(found)["x"], shown(found["x"])) == (value, written, written)
    assert OmegaConf.create(as_written(found)).x == value
    assert "hunter2" not in repr(found)
    assert OmegaConf.create({"a": "${oc.env:PW}"}).a == "hunter2"  # the resolver is OmegaConf's again


def test_a_text_made_of_a_requested_one_is_a_request_too() -> None:
    asked = {"folder": "${oc.env:PW}"}
    given = remember_environment({"folder": "hunter2"}, asked)
    made = with_requests({"file": f"{given['folder']}/${{x}}.py:f", "other": "plain"}, given)
    assert as_written(made) == {"file": r"${oc.env:PW}/\${x}.py:f", "other": "plain"}


def test_other_interpolations_are_written_by_value() -> None:
    config = load_config(["data.system_prompt='${model.build.architecture} ${oc.env:EMPTY}'", "algorithm=dr_grpo"])
    assert as_written(config).algorithm.aggregation == {"name": "constant_length", "length": 64}


@pytest.mark.parametrize(
    "text", ["${x}", "a ${ b", "\\${x}", "\\\\${x}", "$${x}$", "{{ x }}", "plain", "C:\\a", "${oc.env:PW}", "\\"]
)
def test_a_literal_that_looks_like_an_interpolation_is_read_back(tmp_path: Path, tokenizer: Any, text: str) -> None:
    config = load_config([])
    config.data.prompt_template = text
    config.algorithm.advantage = {"name": "grpo", "text": [text]}
    run = RunFolder.create(tmp_path, config, tokenizer)
    assert run.config() == config
    assert as_written(run.config()) == as_written(config)


def test_the_written_configuration_reads_the_environment_again(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([REWARDS])
    run = RunFolder.create(tmp_path, config, tokenizer)
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    monkeypatch.setenv("PW", "changed")
    assert run.config().rewards[1]["url"] == "http://h/changed"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/data/rows.jsonl", "rows.jsonl"),
        ("~/runs/mine", "mine"),
        ("/home/me/my rewards.py:score", "my rewards.py:score"),
        ("/data", "data"),
        ("org/model", "org/model"),
        ("http://host:80/score", "http://host:80/score"),
        ("see /home/me for more", "see /home/me for more"),
        ("^/(a|b)$", "^/(a|b)$"),
        ("/", "/"),
        ("/home/me/data/*.jsonl", "*.jsonl"),
        ("file:///home/me/reward.py", "reward.py"),
        ("/home/me/{a,b}/part-[0-9]?.parquet", "part-[0-9]?.parquet"),
        ("to read: HOME/notes and HOMER/x", "to read: ~/notes and HOMER/x"),
    ],
)
def test_published_names_have_no_folders_of_this_machine(
    text: str, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    text, public = (given.replace("HOME", "/users/me") for given in (text, public))
    assert publishable({"a": [text], "b": 3}) == {"a": [public], "b": 3}


def test_a_secret_that_looks_like_a_file_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "/hunter2")
    assert "hunter2" not in str(asdict(publishable(load_config(["model.path=${oc.env:PW}"]))))


def test_plain_containers_of_yaml_come_back(tmp_path: Path) -> None:
    assert OmegaConf.create(asdict(as_written(Config()))).learner.betas == [0.9, 0.999]
