"""Where workers fit on nodes, by hand."""

from __future__ import annotations

from rlsys.build.diagram import diagram, place
from rlsys.runtime.room import Demand
from rlsys.runtime.survey import Node

WORKERS = [
    Demand("rollout/0", 1, 1, {"OMP_NUM_THREADS": "4"}),
    Demand("rollout/1", 1, 1),
    Demand("learner/0", 2, 1),
    Demand("scoring/0", 1),
]


def test_workers_fill_one_node_after_the_other() -> None:
    placed, left_out = place(WORKERS, [Node("a", 3, 1, None), Node("b", 3, 2, None)])
    names = {node: [demand.name for demand in demands] for node, demands in placed.items()}
    assert names == {"a": ["rollout/0", "scoring/0"], "b": ["rollout/1", "learner/0"]}
    assert left_out == []


def test_workers_without_room_are_named() -> None:
    placed, left_out = place(WORKERS, [Node("a", 8, 2, None)])
    assert [demand.name for demand in left_out] == ["learner/0"]
    assert len(placed["a"]) == 3


def test_the_diagram() -> None:
    lines = diagram({"a": WORKERS[:1] + WORKERS[3:], "b": []}, {"a": "4 cores"})
    assert lines == [
        "a  4 cores",
        "├─ rollout/0    1 CPU, 1 GPU, 4 threads",
        "└─ scoring/0    1 CPU, 1 thread",
        "b",
        "└─ no worker",
    ]
