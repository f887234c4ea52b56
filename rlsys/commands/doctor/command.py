"""`rlsys doctor`: checks of the machine or cluster, and a plan of the run that the overrides describe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlsys.commands.doctor.table import show_findings
from rlsys.commands.libraries import quiet_libraries
from rlsys.commands.overrides import add_overrides
from rlsys.commands.train import check_folder, check_prepared, folder_of
from rlsys.config.cluster_address import cluster_address
from rlsys.config.compose import Job, compose_jobs
from rlsys.config.overrides import names_a_run
from rlsys.config.schema import Config
from rlsys.errors import RlsysError
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.limits import Limits

if TYPE_CHECKING:  # `rlsys doctor --help` and completion load no torch
    from rlsys.preflight.prepared import Prepared
    from rlsys.runtime.survey import Node

DESCRIPTION = """\
Check the versions, the machine and, with a model, data or an experiment, the run that the options describe:

  rlsys doctor
  rlsys doctor experiment=quickstart
  rlsys doctor experiment=my.yaml cluster.address=head:6379

It starts nothing, but for one small task per node where a Ray cluster is named. It ends with 1 if a check fails.
"""
SURVEY_S = 60.0  # for the tasks on a cluster's nodes; a node may have to start a process and import rlsys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the overrides."""
    parser.description = DESCRIPTION
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Print the results of all checks, and the plan of a run; end with 1 when a check fails."""
    from rlsys.build.machine import machine_findings
    from rlsys.commands.doctor.plan import show_plan

    quiet_libraries()
    (job,) = compose_jobs(options.overrides)
    run_dir = folder_of(job)
    findings = machine_findings(job.config, run_dir)
    show_findings("this machine", findings)
    nodes, more = _nodes(job.config)
    findings += more
    show_findings("the cluster", more)
    for node in nodes if len(nodes) > 1 or more else []:
        show_findings(f"node {node.name}", node.findings)
        findings += node.findings
    if names_a_run(options.overrides):
        prepared, of_run = _run_findings(job, run_dir)
        show_findings("the run", of_run)
        findings += of_run
        if prepared is not None:
            findings += show_plan(prepared, nodes)
    failed = sum(finding.level == Level.FAIL for finding in findings)
    doubtful = sum(finding.level == Level.WARN for finding in findings)
    print(f"\n{failed} checks fail, {doubtful} are doubtful, of {len(findings)}")
    if failed:
        sys.exit(1)


def _run_findings(job: Job, run_dir: Path) -> tuple[Prepared | None, list[Finding]]:
    """Check the run's folder and configuration; return the prepared run where there is one."""
    from rlsys.preflight.prepare import prepare

    try:
        check_folder(job)
        prepared = prepare(job.config)
        check_prepared(prepared, run_dir)
    except RlsysError as error:
        return None, [Finding("configuration", Level.FAIL, str(error))]
    return prepared, [Finding("configuration", Level.OK, "options, model, data, rewards and folder fit together")]


def _nodes(config: Config) -> tuple[list[Node], list[Finding]]:
    """Return the machines that workers may run on: this one, or the nodes of the cluster that is named."""
    from rlsys.runtime.cluster import Cluster
    from rlsys.runtime.survey import Node, survey

    joined = cluster_address(config.cluster)
    if joined is None:
        # A local Ray has as many logical CPUs as the roles ask for.
        return [Node("this machine", float("inf"), config.cluster.num_gpus, Limits.here())], []
    cluster = Cluster(config.cluster)
    try:
        cluster.connect([])
        nodes = survey(SURVEY_S)
    except RlsysError as error:
        return [], [Finding("connection", Level.FAIL, str(error))]
    finally:
        cluster.close()
    return nodes, [Finding("connection", Level.OK, f"{len(nodes)} nodes at {joined[0]} (from {joined[1]})")]
