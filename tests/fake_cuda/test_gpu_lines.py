"""No line that only GPUs reach is left to the first user who has one: tests enter each, or it is named here."""

from __future__ import annotations

import ast
from collections.abc import Collection

import pytest

from tests.fake_cuda.conftest import ALL_ON_GPU, ALL_ORDINARY, run_once
from tests.fake_cuda.lines import Module, gpu_pieces, search
from tests.fake_cuda.recorder import place, reporting

BITSANDBYTES = "transformers makes settings for 4 bits only where bitsandbytes is installed, which is on GPUs"
# Pieces that no test enters, and why. A name is a piece's key, or its beginning: a whole function.
NOT_ENTERED = {
    "rlsys/models/policy.py _quantization": BITSANDBYTES,
    "rlsys/models/policy.py load_policy": BITSANDBYTES,
}


@pytest.mark.timeout(1200)
def test_every_gpu_line_is_entered_or_named(pytestconfig: pytest.Config) -> None:
    runs = run_once(ALL_ON_GPU, pytestconfig), run_once(ALL_ORDINARY, pytestconfig)
    for run in runs:
        assert run.outcomes, run.output
    failed = [test for run in runs for test, (outcome, _) in run.outcomes.items() if outcome == "failed"]
    assert not failed, "lines may be missing because these tests fail: " + ", ".join(failed)
    entered = {key for run in runs for key in run.entered}
    keys = [piece.key for pieces in gpu_pieces().values() for piece in pieces]
    found = complaints(keys, entered, NOT_ENTERED)
    assert not found, "\n".join(found)


def complaints(keys: Collection[str], entered: Collection[str], named: Collection[str]) -> list[str]:
    """Return what is wrong with the record or with the list of names."""
    left = [f"no test enters: {key}" for key in keys if key not in entered and not key.startswith(tuple(named))]
    unknown = [f"there is no such line: {name}" for name in named if not any(key.startswith(name) for key in keys)]
    both = [
        f"tests enter what is named as not entered: {k}" for k in keys if k in entered and k.startswith(tuple(named))
    ]
    return left + unknown + both


def test_the_check_complains() -> None:
    assert complaints(["a f: x", "a f: y"], ["a f: x"], ["a f: y"]) == []
    assert complaints(["a f: x"], [], []) == ["no test enters: a f: x"]
    assert complaints(["a f: x"], ["a f: x"], ["a f"]) == ["tests enter what is named as not entered: a f: x"]
    assert complaints(["a f: x"], ["a f: x"], ["a g"]) == ["there is no such line: a g"]


SOURCE = '''
def attend(query, backend, rank):
    if query.device.type == "cpu":
        return on_cpu(query)
    if backend in ("nccl", "ipc"):
        send(query)
    elif rank == 0:
        both()
    return kernel(query)


def place(device, backend):
    name = "gpu name" if device.type == "cuda" else "cpu name"
    if device.type != "cuda" or old(device):
        return 1
    while not backend == "gloo":
        other()
    return 2


def kernel(query):
    """Only `attend` calls it, behind its return."""
    return helper(query)


def helper(query):
    return query


def free_gpu():
    return helper(1)


def on_cpu(query):
    return query
'''


def test_pieces_are_found() -> None:
    module = Module.parse("m.py", SOURCE)
    found = [(piece.owner, piece.text) for piece in search([module], [module])["m.py"]]
    assert found == [
        ("attend", 'if backend in ("nccl", "ipc"):'),
        ("attend", "send(query)"),
        ("attend", "elif rank == 0:"),
        ("attend", "both()"),
        ("attend", "return kernel(query)"),
        ("place", '"gpu name"'),
        ("place", "old(device)"),
        ("place", 'while not backend == "gloo":'),
        ("place", "other()"),
        ("place", "return 2"),
        ("kernel", "return helper(query)"),
        ("helper", "return query"),
        ("free_gpu", "return helper(1)"),
    ]


def test_pieces_report_and_compute_the_same() -> None:
    module = Module.parse("m.py", "def f(gpu):\n    if gpu:\n        return 'a' if not gpu else 'b'\n    return 'c'\n")
    keys = {place(piece.node): piece.text for piece in search([module], [module])["m.py"]}
    entered: list[str] = []
    names: dict = {"__entered__": entered.append}
    exec(compile(reporting(ast.unparse(module.tree), keys), "m.py", "exec"), names)
    assert (names["f"](False), entered) == ("c", [])
    assert (names["f"](True), entered) == ("b", ["return 'a' if not gpu else 'b'", "'b'"])
