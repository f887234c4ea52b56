"""MLflow: a tracking server, a database or a folder."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from rlsys.config.dotted import flatten
from rlsys.metrics.formatting import finite_items
from rlsys.metrics.trackers import TrackedRun, register

TAG = "rlsys_run"
MAX_PARAMS = 100  # the most parameters that MLflow takes in one call


@register("mlflow", imports=("mlflow.tracking", "sqlalchemy", "alembic"), extra="mlflow")
class MLflow:
    """One MLflow run per run, with the configuration as its parameters. A tag finds it again when the run is resumed.

    Without `uri` it goes where the environment variable `MLFLOW_TRACKING_URI` says, else to MLflow's own default,
    `mlflow.db` in the working directory. MLflow accepts a folder (`file:...`) only if `MLFLOW_ALLOW_FILE_STORE=true`.
    """

    def __init__(
        self, run: TrackedRun, *, uri: str | None = None, experiment: str = "rlsys", run_name: str | None = None
    ) -> None:
        """Create the MLflow run, or continue it.

        Args:
            run: the run to track.
            uri: the server, database or folder.
            experiment: the MLflow experiment; it is created if it does not exist.
            run_name: how MLflow shows the run; by default the name of its folder.
        """
        from mlflow.tracking import MlflowClient

        # The client and not MLflow's functions: those keep the current run in a global, one per thread.
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        earlier = self._client.search_runs([experiment_id], f"tags.{TAG} = '{run.run_id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = run_name or run.run_dir.name
            self._id = self._client.create_run(experiment_id, tags={TAG: run.run_id}, run_name=name).info.run_id
            self._log_config(run.config)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Send one row in one request."""
        from mlflow.entities import Metric

        # One request per step, not one per metric.
        now_ms = int(time.time() * 1000)
        rows = [Metric(_key(key), value, now_ms, step) for key, value in finite_items(metrics).items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self) -> None:
        """Mark the MLflow run as finished."""
        self._client.set_terminated(self._id)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = (
            Param(_key(key), value if isinstance(value, str) else json.dumps(value, default=str))
            for key, value in flatten(config).items()
        )
        while batch := list(itertools.islice(params, MAX_PARAMS)):
            self._client.log_batch(self._id, params=batch)


def _key(key: str) -> str:
    """Replace the characters that MLflow does not allow in names."""
    return re.sub(r"[^\w\-. /:]", "_", key)
