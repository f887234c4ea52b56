"""Installed packages against requirements as a distribution's metadata has them."""

from __future__ import annotations

from rlsys.build.versions import compare, version_findings
from rlsys.config.schema import Config
from rlsys.runtime.findings import Level

ASKED = [
    "ray[default]==2.60.0",
    "rich>=13",
    'torch==2.13.0; extra == "cpu"',
    'wandb>=0.31; extra == "wandb"',
    'trl==1.16.0; extra == "dev"',
]
INSTALLED = {"ray": "2.60.0", "rich": "14.1", "torch": "2.13.0+cpu"}


def test_what_is_asked_for_is_there_and_extras_that_are_not_used_do_not_count() -> None:
    finding = compare(ASKED, INSTALLED, ["cpu"])
    assert (finding.level, finding.found) == (Level.OK, "3 packages are what rlsys asks for")


def test_another_version_is_doubtful() -> None:
    finding = compare(ASKED, {**INSTALLED, "ray": "2.59.1", "torch": "2.12.0"}, ["cpu"])
    assert finding.level == Level.WARN
    assert finding.found == "ray is 2.59.1, not ==2.60.0; torch is 2.12.0, not ==2.13.0"


def test_a_package_that_is_missing_fails_also_a_tracker_s() -> None:
    finding = compare(ASKED, INSTALLED, ["cpu", "wandb"])
    assert (finding.level, finding.remedy) == (Level.FAIL, "pip install 'wandb>=0.31'")


def test_this_environment() -> None:
    (finding,) = version_findings(Config())
    assert finding.level in (Level.OK, Level.NOTE), finding
