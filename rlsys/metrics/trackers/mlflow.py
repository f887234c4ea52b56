"""MLflow: a tracking server, a database or a folder."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rlsys.metrics.row import numbers
from rlsys.metrics.trackers import Start, register

TAG = "rlsys_run"
BATCH = 100
"""Parameters that MLflow takes at once."""


@register("mlflow", imports=("mlflow.tracking", "sqlalchemy", "alembic"), extra="mlflow")
class MLflow:
    """A run of MLflow for this run, found again by a tag when this one is resumed; the configuration is its parameters.

    Without `uri` it goes where `MLFLOW_TRACKING_URI` says, else to MLflow's own default, `mlflow.db` in the working
    directory. MLflow takes a folder (`file:...`) only where `MLFLOW_ALLOW_FILE_STORE=true` is set.
    """

    def __init__(
        self, start: Start, *, uri: str | None = None, experiment: str = "rlsys", run_name: str | None = None
    ) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        earlier = self._client.search_runs([experiment_id], f"tags.{TAG} = '{start.run_id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = run_name or start.run_dir.name
            self._id = self._client.create_run(experiment_id, tags={TAG: start.run_id}, run_name=name).info.run_id
            self._log_config(start.config)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [Metric(_key(key), value, now_ms, step) for key, value in numbers(metrics).items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = (Param(_key(key), value) for key, value in _flat(config))
        while batch := list(itertools.islice(params, BATCH)):
            self._client.log_batch(self._id, params=batch)


def _key(key: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return re.sub(r"[^\w\-. /:]", "_", key)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
