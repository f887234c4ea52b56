"""What `launch/ray_job.sh` ships: the caller's folder with rlsys, no secrets, and nothing that Ray would not take."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package() -> ModuleType:
    spec = importlib.util.spec_from_file_location("job_package", ROOT / "launch" / "job_package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with what should travel and what should not."""
    mine = tmp_path / "mine"
    for name in ("rewards.py", "data/rows.jsonl", ".hidden/x", "runs/old/config.yaml", "env/pyvenv.cfg", "env/lib.py"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(name)
    return mine


def test_the_caller_s_folder_travels_with_rlsys(
    package: ModuleType,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "RLSYS_REWARD_TOKEN", "RLSYS_DATA", "RLSYS_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    secret_files = (".env", ".env.local", "data/.netrc", "data/id_ed25519", "host.pem", ".envrc")
    secret_files += ("credentials.json", "secrets.yaml", "my-service-account-1.json", "data/credentials")
    for name in secret_files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("hunter2")
    (folder / ".environment").write_text("not by this name")
    package.main(folder, ROOT, tmp_path / "job.zip")
    printed = capsys.readouterr()
    names = set(zipfile.ZipFile(tmp_path / "job.zip").namelist())
    assert {
        "rewards.py",
        "data/rows.jsonl",
        "rlsys/cli.py",
        "rlsys/config/secrets.py",
        "rlsys/configs/config.yaml",
    } <= names
    assert [name for name in names if name.startswith((".", "runs", "env", "tests"))] == [".environment"]
    assert names.isdisjoint(secret_files)
    assert all(name in printed.err for name in secret_files)
    sent = json.loads(printed.out)
    assert sent["working_dir"] == str(tmp_path / "job.zip")
    assert sent["env_vars"]["RLSYS_RUNS"] == "~/rlsys-runs"  # of the home on the cluster
    assert "HF_TOKEN" in printed.err
    assert "hunter2" not in printed.out + printed.err


def test_what_git_ignores_stays(package: ModuleType, folder: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".gitignore").write_text("data/\nenv/\nruns/\n")
    assert {file.name for file in package.files_of(folder)} == {".gitignore", "rewards.py", "x"}


def test_a_folder_of_rlsys_s_name_is_refused(package: ModuleType, folder: Path) -> None:
    (folder / "rlsys").mkdir()
    with pytest.raises(SystemExit, match="has a file or folder 'rlsys'"):
        package.package_files(folder, ROOT)
    assert "rlsys/cli.py" in package.package_files(ROOT, ROOT)  # in the repository it is rlsys's own


def test_configs_of_the_folder_travel_beside_rlsys_s_own(package: ModuleType, folder: Path, tmp_path: Path) -> None:
    """What arrives takes its presets from the package."""
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.yaml").write_text("a: 1")
    os.utime(folder / "configs" / "mine.yaml", (0, 0))  # a date before the first that a zip can hold
    package.main(folder, ROOT, tmp_path / "job.zip")
    zipfile.ZipFile(tmp_path / "job.zip").extractall(tmp_path / "job")
    assert (tmp_path / "job" / "configs" / "mine.yaml").read_text() == "a: 1"
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rlsys.config.overrides import config_dir, presets; print(config_dir(), presets('data'))",
        ],
        cwd=tmp_path / "job",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith(f"{tmp_path}/job/rlsys/configs ")
    assert "gsm8k" in shown


def test_a_package_above_ray_s_limit_names_its_largest_files(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"0" * 2**21)
    files = {"large.bin": tmp_path / "large.bin"}
    package.check_size(2**20 - 1, files, limit=2**20)
    with pytest.raises(SystemExit, match=r"Ray takes 1 MiB. The largest files: large\.bin \(2 MiB\)"):
        package.check_size(2**20, files, limit=2**20)


def test_variables_that_travel_and_secrets_that_do_not(package: ModuleType) -> None:
    secret = ["HF_TOKEN", "WANDB_API_KEY", "MY_API_KEY", "RLSYS_REWARD_TOKEN", "MLFLOW_TRACKING_URI", "PGPASSWORD"]
    plain = {"HF_HOME": "/hf", "RLSYS_DATA": "/data", "RAY_AUTH_TOKEN": "x", "WANDB_MODE": "offline", "PATH": "/bin"}
    variables, kept_back = package.environment({**dict.fromkeys(secret, "hunter2"), **plain, "RLSYS_RUNS": "/runs"})
    assert variables == {"HF_HOME": "/hf", "RLSYS_DATA": "/data", "RLSYS_RUNS": "/runs"}
    assert kept_back == sorted(secret)
    with pytest.raises(SystemExit, match="RLSYS_RUNS=runs would lie in the job's own folder"):
        package.environment({"RLSYS_RUNS": "runs"})


@pytest.mark.parametrize("override", ["run_dir=runs/mine", "run_dir=mine"])
def test_a_run_folder_inside_the_job_is_refused(override: str) -> None:
    script = (ROOT / "launch" / "ray_job.sh").read_text()
    # The check alone: it needs no environment and no Ray.
    check = script[script.index("for override in") : script.index("# Head, nodes and this client")]
    command = ["bash", "-c", f'die() {{ echo "$*" >&2; exit 1; }}\n{check}', "ray_job.sh"]
    refused = subprocess.run([*command, override], capture_output=True, text=True, check=False)
    assert (refused.returncode, "which Ray removes" in refused.stderr) == (1, True)
    subprocess.run([*command, "run_dir=/shared/mine", "run_dir=~/mine", "seed=3"], check=True)
