"""The light half of the package can be used without Ray, vLLM or DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import rlsys.algorithms, rlsys.config.schema, rlsys.rewards, rlsys.orchestrator.orchestrator, rlsys.types
for package in (rlsys.algorithms, rlsys.rewards):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def test_algorithms_rewards_orchestrator_config_and_types_load_no_engine() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert {"rlsys.algorithms.loss", "rlsys.algorithms.kl.k3", "rlsys.rewards.math_answer"} <= loaded
    assert "rlsys.orchestrator.orchestrator" in loaded
    assert not {"ray", "vllm", "deepspeed"} & loaded
