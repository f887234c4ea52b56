"""Shell scripts and lists of flags."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.shell_script import calls, scalar
from rlsys.commands.importers.shell_variables import Unread
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
        ("none", "none"),  # `--scale_rewards none`, `--report_to none`: words
        ("null", "null"),
        ("010", 10),
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


def unread(text: str, option: str) -> Unread:
    value = only(text)[option]
    assert isinstance(value, Unread)
    return value


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("$1", "the script does not set $1"),
        ("${NOT_SET_ANYWHERE}/model", "the script does not set $NOT_SET_ANYWHERE"),
        ("${NOT_SET_ANYWHERE:?give a model}", "the script does not set $NOT_SET_ANYWHERE"),
        ("$(pwd)/model", "line 2 takes the output of a command"),
        ("${HOME##*/}", "line 2 changes a variable in a way that is not read"),
        ("$((NOT_SET_ANYWHERE * 2))", "line 2 calculates something that is not read"),
    ],
)
def test_a_word_of_which_a_part_is_not_known_says_why(use: str, why: str) -> None:
    value = unread(f"set -x\npython train.py --model {use} --ok 1", "model")
    assert value == use
    assert why in value.reason


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("if [ $1 = a ]; then\n  N=1\nelse\n  N=2\nfi", 2),
        ("N=1\nif [ $1 = a ]; then\n  N=2\nfi", 3),
        ('N=1\n[ -n "$X" ] && N=2', 3),
        ("N=1\nfalse || N=2", 3),
        ("N=1\ngrep -q a b && N=2", 3),
        ("case $1 in\n  a) N=1 ;;\n  *) N=2 ;;\nesac", 2),
        ("N=(1)\nif [ $1 = a ]; then\n  N+=(2)\nfi", 3),
        ("while true; do\n  N=2\ndone", 2),
        ("for N in 1 2; do\n  :\ndone", 2),
    ],
)
def test_a_variable_that_a_condition_decides_is_not_known(text: str, line: int) -> None:
    assert f"line {line} " in unread(f"set -x\n{text}\npython train.py --seed $N --ok 1", "seed").reason


@pytest.mark.parametrize(
    "text",
    [
        "if [ $1 = a ]; then\n  N=1\nelse\n  N=1\nfi",  # the same whatever the condition
        "if [ $1 = a ]; then\n  N=2\nfi\nN=1",
        "if [ $1 = a ]; then\n  N=2\nfi\nN=1\n(N=3)",
        "cd /tmp && N=1",
    ],
)
def test_a_variable_that_no_condition_decides_is_known(text: str) -> None:
    assert only(f"{text}\npython train.py --seed $N") == {"seed": 1}
    inside = "if [ $1 = a ]; then\n  N=1\n  python train.py --seed $N\nfi"
    assert only(inside) == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("N=${N:-8}\npython train.py --n $N", {"n": 8}),
        (': "${N:=8}"\npython train.py --n $N', {"n": 8}),
        ("N=${A:-${B:-4}}\npython train.py --n $N", {"n": 4}),
        ('N=${A:-a b}\npython train.py --n "$N"', {"n": "a b"}),
        ("E=''\npython train.py --n ${E:-1} --m \"${E-2}\" $E --k 3", {"n": 1, "m": "", "k": 3}),
        ("L=$((8 * 1024))\nM=$(( L / 2 + 1 ))\npython train.py --l $L --m $M", {"l": 8192, "m": 4097}),
        ("N=3\npython train.py --n $((${N:-2} * (N - 1)))", {"n": 6}),
        ("A=(--x 1)\nA+=(--y 2)\nB=a\nB+=b\npython train.py ${A[@]} --z $B", {"x": 1, "y": 2, "z": "ab"}),
        ('python train.py --x 1 "$@" $*', {"x": 1}),
        ("N=4\npython train.py --x${N:+y} 1", {"xy": 1}),
    ],
)
def test_expansions_are_read_as_bash_reads_them(
    text: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ABELMN":
        monkeypatch.delenv(name, raising=False)
    assert only(text) == arguments


def test_the_output_of_a_command_is_known_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("N", raising=False)
    text = "N=$(nvidia-smi | wc -l)\npython train.py --n $N --m ${N:-8} --k ${N:+7}"
    for option in "nmk":
        assert "line 1 sets $N to the output of a command" in unread(text, option).reason
    monkeypatch.setenv("N", "4")
    assert only(text) == {"n": 4, "m": 4, "k": 7}


@pytest.mark.parametrize(
    "text",
    [
        "python train.py --run_name exp#3 --kl 0.01",
        "python train.py --run_name exp#3 \\\n  --kl 0.01",
        "python train.py \\\n  --run_name exp#3 \\\n  # --kl 5 \\\n  --kl 0.01",
        "N=exp#3\npython train.py --run_name $N --kl 0.01",
        "A=(\n  --run_name exp#3\n  --kl 0.01 # why\n)\npython train.py ${A[@]}",
    ],
)
def test_a_number_sign_within_a_word_starts_no_comment(text: str) -> None:
    assert only(text) == {"run_name": "exp#3", "kl": 0.01}


def test_overrides_are_yaml_and_flags_are_words() -> None:
    text = (
        """python -m pkg.main trainer.logger="['console','wandb']" data.path=null data.lr=1e-6 data.on=true --x null"""
    )
    assert only(text) == {
        "trainer.logger": ["console", "wandb"], "data.path": None, "data.lr": 1e-6, "data.on": True, "x": "null",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (r"""python train.py --a "it's" --b 'x "$Y"' --c a\ b --d \$HOME --e="1 2" """,
         {"a": "it's", "b": 'x "$Y"', "c": "a b", "d": "$HOME", "e": "1 2"}),
        ("python train.py --url http://h:1/x#part --b >log.txt 2>&1 &", {"url": "http://h:1/x#part", "b": True}),
        ("FLAGS='--a 1 --b two'\npython train.py $FLAGS --c 3 | tee log.txt", {"a": 1, "b": "two", "c": 3}),
        ('A=(--x 1)\nB=("${A[@]}" --y "two words")\npython train.py "${B[@]}"', {"x": 1, "y": "two words"}),
        ('A=1 B="2  3"\npython train.py --a "${A} ${B} " --b " $A"', {"a": "1 2  3 ", "b": 1}),
        ("S=1\nrun() {\n  python train.py --seed $S\n}\nrun", {"seed": 1}),
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
    assert (call.program, call.arguments) == ("src/grpo.py", {"seed": 1})
    assert call.launcher["num_processes"] == 7
    ray = "ray job submit --address=http://h:1 --runtime-env-json='{\"a\": 1}' -- python3 -m pkg.main --seed 2"
    assert only(ray) == {"seed": 2}


def test_a_list_of_flags_needs_no_program() -> None:
    assert only("--seed 3\n--beta 0.1\n--use_vllm\n") == {"seed": 3, "beta": 0.1, "use_vllm": True}


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"script\.sh: bash could not parse this .*: python train\.py --a \"b"):
        calls('python train.py --a "b', "script.sh")
