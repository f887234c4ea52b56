"""A template is a text or any existing file."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.templates import absolute_template, text_or_file
from rlsys.errors import ConfigError


def read(value: str) -> str:
    return text_or_file(value, "model.chat_template", variable="messages")


@pytest.mark.parametrize("name", ["t.tmpl", "t.jinja", "t", "t.chat_template", "{t}.txt"])
def test_an_existing_file_is_read_whatever_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("\ufeff{{ messages }}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(name) == read(f"~/{name}") == "{{ messages }}"
    assert absolute_template(name) == str(tmp_path / name)


@pytest.mark.parametrize("text", ["{{ messages }}", "~ {{ messages }}", "two\nlines", "{{ m }}" * 900, "{\0}"])
def test_a_text_is_a_template(text: str) -> None:
    assert read(text) == absolute_template(text) == text


@pytest.mark.parametrize("name", ["chatml", "qwen_25", "missing.tmpl", "a/missing.jinja"])
def test_a_name_of_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.chat_template: no such file: .*{name}; nor is '{name}' a template"):
        read(name)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"{{ messages }} \xe9")
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*t\.txt is not UTF-8 \(byte 16\)"):
        read(str(tmp_path / "t.txt"))
