"""Shell scripts and lists of flags."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.shell_script import calls, scalar
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("1e-6", 1e-6),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ('{"n": 16}', {"n": 16}),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("all-linear", "all-linear"),
    ],
)
def test_a_word_becomes_the_value_it_stands_for(word: str, value: Any) -> None:
    found = scalar(word)
    assert found == value
    assert type(found) is type(value)


def only(text: str) -> dict[str, Any]:
    (call,) = calls(text, "script.sh")
    return call.arguments


def test_a_flag_takes_the_words_up_to_the_next_flag() -> None:
    text = "python -m pkg.main key.sub=4 --one --two 2 --many a b -3 --equals=x=y --range -10 10 && echo done --not"
    program, other = calls(text, "script.sh")
    assert other.arguments == {"not": True}
    assert program.arguments == {
        "one": True,
        "two": 2,
        "many": ["a", "b", -3],
        "equals": "x=y",
        "range": [-10, 10],
        "key.sub": 4,
    }


def test_continued_lines_are_joined_and_comments_left_out() -> None:
    text = """#!/bin/bash
    set -x
    # --commented 1
    python train.py \\
        --a 1 \\
        # --b 2 \\
        --c "x # y"  # --d 3
    """
    assert only(text) == {"a": 1, "c": "x # y"}


def test_variables_come_from_the_script_and_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "outer")
    monkeypatch.setenv("MODEL", "not this one")
    text = """
    MODEL="org/model"  # a comment
    export NAME=${MODEL}-tuned
    python train.py --model $MODEL --name "${NAME}/x" --env ${FROM_OUTSIDE} --fallback ${NOT_SET_1:-7}
    """
    expected = {"model": "org/model", "name": "org/model-tuned/x", "env": "outer", "fallback": 7}
    assert only(text) == expected


@pytest.mark.parametrize("use", ["$1", "${NOT_SET_ANYWHERE}/model", "$(pwd)/$NOT_SET_ANYWHERE"])
def test_an_option_with_an_unset_variable_is_an_error(use: str) -> None:
    with pytest.raises(ConfigError) as caught:
        calls(f"python train.py --model {use} --ok 1", "run.sh")
    assert "run.sh: 'model'" in str(caught.value)
    assert "does not set $" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (r"""python train.py --a "it's" --b 'x "$Y"' --c a\ b --d \$HOME --e="1 2" """,
         {"a": "it's", "b": 'x "$Y"', "c": "a b", "d": "$HOME", "e": "1 2"}),
        ("python train.py --url http://h:1/x#part --b >log.txt 2>&1 &", {"url": "http://h:1/x#part", "b": True}),
        ("FLAGS='--a 1 --b two'\npython train.py $FLAGS --c 3 | tee log.txt", {"a": 1, "b": "two", "c": 3}),
        ('A=(--x 1)\nB=("${A[@]}" --y "two words")\npython train.py "${B[@]}"', {"x": 1, "y": "two words"}),
        ('A=1 B="2  3"\npython train.py --a "${A} ${B} " --b " $A"', {"a": "1 2  3 ", "b": 1}),
        ("if true; then\n  S=1\nfi\nrun() {\n  python train.py --seed $S\n}\nrun", {"seed": 1}),
        ("cat > notes <<EOF\n--not 1\nEOF\npython train.py --a 1", {"a": 1}),
    ],
)  # fmt: skip
def test_quotes_redirections_and_blocks_are_read_as_bash_reads_them(text: str, arguments: dict[str, Any]) -> None:
    assert only(text) == arguments


def test_arrays_and_here_documents_are_filled_in() -> None:
    array = """
    ARGS=(
       --a 1  # why
       # --b 2
       --c "two words"
    )
    python train.py ${ARGS[@]} --d 4
    """
    assert only(array) == {"a": 1, "c": "two words", "d": 4}
    document = "read -r -d '' command <<EOF\npkg.main \\\n --a 1 \\\n --b 2\nEOF\npython3 -m $command"
    (call,) = calls(document, "script.sh")
    assert (call.program, call.arguments) == ("pkg.main", {"a": 1, "b": 2})


def test_flags_of_the_launcher_are_not_those_of_the_program() -> None:
    text = "A=1 accelerate launch --config_file zero3.yaml --num_processes=7 src/grpo.py --seed 1"
    (call,) = calls(text, "script.sh")
    assert (call.program, call.arguments) == ("src/grpo.py", {"num_processes": 7, "seed": 1})
    ray = "ray job submit --address=http://h:1 --runtime-env-json='{\"a\": 1}' -- python3 -m pkg.main --seed 2"
    assert only(ray) == {"seed": 2}


def test_a_list_of_flags_needs_no_program() -> None:
    assert only("--seed 3\n--beta 0.1\n--use_vllm\n") == {"seed": 3, "beta": 0.1, "use_vllm": True}


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"script\.sh: bash could not parse this .*: python train\.py --a \"b"):
        calls('python train.py --a "b', "script.sh")
