"""preflight checks configurations: it must not know the workers that run them."""

from __future__ import annotations

import ast
from pathlib import Path

import rlsys.preflight

ALLOWED = (
    "config",
    "algorithms",
    "data",
    "environments",
    "rewards",
    "models",
    "errors",
    "registry",
    "types",
    "preflight",
)
ALLOWED_MODULES = ("rlsys.metrics.trackers.choice",)


def test_preflight_imports_no_worker_and_no_runtime() -> None:
    for path in sorted(Path(rlsys.preflight.__path__[0]).glob("*.py")):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [node for node in imports if node.level]
        own = [str(node.module) for node in imports if str(node.module).startswith("rlsys.")]
        foreign = [name for name in own if name.split(".")[1] not in ALLOWED and name not in ALLOWED_MODULES]
        assert foreign == [], path.name
