"""Checks of this machine before a run, for `rlsys doctor` and the start of `rlsys train`."""

from __future__ import annotations

from pathlib import Path

import torch

from rlsys.build.versions import version_findings
from rlsys.config.cluster_address import cluster_address
from rlsys.config.paths import expand, nearest_existing
from rlsys.config.schema import Config
from rlsys.preflight.checks import check_machine
from rlsys.runtime.findings import Finding, Level, found_by
from rlsys.runtime.node_checks import disk, is_writable, node_findings


def machine_findings(config: Config, run_dir: Path) -> list[Finding]:
    """Check versions, devices and folders, and what Ray and the workers need of the machine."""

    def backend() -> str:
        check_machine(config)
        return "one build of vLLM is installed"

    return [
        found_by("vLLM", backend),
        *version_findings(config),
        _gpus(config, torch.cuda.device_count(), torch.version.cuda),
        *node_findings(starts_ray=cluster_address(config.cluster) is None),
        disk("disk for the run", nearest_existing(run_dir)),
        *_caches(config),
    ]


def _gpus(config: Config, found: int, cuda: str | None) -> Finding:
    """Compare the GPUs that PyTorch sees with `cluster.num_gpus`; on a cluster they are on its nodes."""
    asked, seen = config.cluster.num_gpus, f"PyTorch sees {found} GPUs"
    if cluster_address(config.cluster) is None and asked > found:
        build = "installed is PyTorch's CPU build" if cuda is None else "nvidia-smi shows what the driver sees"
        return Finding("GPUs", Level.FAIL, f"{seen}, but cluster.num_gpus={asked}", f"lower it; {build}")
    if found and not asked:
        return Finding("GPUs", Level.NOTE, f"{seen}, and the run uses CPUs: cluster.num_gpus=N uses N of them")
    if cuda is not None and not found:
        return Finding("GPUs", Level.NOTE, "none; the installed PyTorch is a CUDA build, which is only larger")
    return Finding("GPUs", Level.OK, f"{asked} of {found}" if found else "none, and none is asked for")


def _caches(config: Config) -> list[Finding]:
    """Check the folders that a run writes besides its own; a model that is given needs none."""
    if config.model.path is not None:
        return []
    return [_writable("model cache", expand(config.model.cache_dir), "set model.cache_dir to a folder of yours")]


def _writable(name: str, folder: Path, remedy: str) -> Finding:
    if is_writable(folder):
        return Finding(name, Level.OK, f"{folder} can be written")
    found = f"{folder} cannot be written (no permission for {nearest_existing(folder)})"
    return Finding(name, Level.FAIL, found, remedy)
