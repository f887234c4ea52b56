"""The package of a Ray job: the caller's folder and rlsys itself as one zip, and the variables that travel with it.

    python launch/job_package.py FOLDER ROOT ZIP

writes ZIP and prints the job's runtime environment as JSON. What git ignores is left out, as are hidden folders, `runs`
and environments where there is no git. Nothing secret travels: Ray shows a job's environment to whoever sees its jobs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

PLAIN = ("RLSYS_DATA", "HF_HOME", "HF_HUB_OFFLINE")  # variables that travel
# Variables that rewards, judges and trackers read, and that do not travel.
SECRET = re.compile(r"(HF_TOKEN|(WANDB|MLFLOW|OPENAI|ANTHROPIC|RLSYS)_\w*|\w*_API_KEY|\w*_TOKEN|\w*PASSWORD)")
NOT_SECRET = re.compile(r"RLSYS_(DATA|RUNS|EXTRA|MIN_MEMORY_GIB)|RAY_\w*|\w*_DIR|\w*_MODE")
# Files that hold passwords and keys by their names, which do not travel either.
SECRET_FILE = re.compile(
    r"\.env(rc|\..*)?|\.netrc|\.pypirc|\.htpasswd|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12|pfx)"
    r"|\.?(credentials|secrets?)(\.(json|ya?ml|toml|ini|txt|csv|env))?|kubeconfig|.*service[-_]?account.*\.json"
)
LEFT_OUT = ("runs", "outputs", "node_modules", "__pycache__")


def main(folder: Path, root: Path, target: Path) -> None:
    """Write the package and print the runtime environment; exit with a message when that cannot work."""
    files = package_files(folder, root)
    secret_files = sorted(name for name in files if SECRET_FILE.fullmatch(Path(name).name))
    for name in secret_files:
        del files[name]
    # Not strict: files from a container image or a store may be dated 1970, which a zip cannot hold.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as package:
        for name, file in files.items():
            package.write(file, name)
    check_size(target.stat().st_size, files)
    variables, kept_back = environment(os.environ)
    if secret_files:
        print(f"rlsys: not sent, because they may hold secrets: {', '.join(secret_files)}", file=sys.stderr)
    if kept_back:
        print(
            f"rlsys: not sent, because Ray shows a job's environment to all who see its jobs: {', '.join(kept_back)}. "
            "What needs them finds them in the environment that `ray start` has on every node",
            file=sys.stderr,
        )
    print(json.dumps({"env_vars": variables, "working_dir": str(target)}))


def package_files(folder: Path, root: Path) -> dict[str, Path]:
    """Return the files to ship by their names in the package: those of the folder, and rlsys with its presets."""
    files = {str(file.relative_to(folder)): file for file in files_of(folder)}
    if folder == root:
        return files
    if (folder / "rlsys").exists():
        sys.exit(f"rlsys: {folder} has a file or folder 'rlsys', the name that rlsys itself has in the package")
    files |= {str(file.relative_to(root)): file for file in files_of(root / "rlsys")}
    # Inside the package, as when it is installed: the folder may have `configs` of its own.
    return files | {f"rlsys/{file.relative_to(root)}": file for file in files_of(root / "configs")}


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that git does not ignore; without git, all but hidden and generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return [file for name in listed.stdout.split("\0") if name and (file := folder / name).is_file()]
    found: list[Path] = []
    for base, folders, names in os.walk(folder):
        is_environment = [name for name in folders if (Path(base) / name / "pyvenv.cfg").is_file()]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in (*LEFT_OUT, *is_environment)]
        found += [Path(base) / name for name in names if (Path(base) / name).is_file()]
    return found


def check_size(size: int, files: Mapping[str, Path], limit: int = GCS_STORAGE_MAX_SIZE) -> None:
    """Exit with the largest files when the package is above Ray's limit."""
    if size < limit:
        return
    largest = sorted(files, key=lambda name: files[name].stat().st_size, reverse=True)[:5]
    listed = ", ".join(f"{name} ({files[name].stat().st_size / 2**20:.0f} MiB)" for name in largest)
    sys.exit(
        f"rlsys: the package has {size / 2**20:.0f} MiB, and Ray takes {limit / 2**20:.0f} MiB. The largest files: "
        f"{listed}. Put data on a file system that the cluster reads, and let git ignore what the job does not need"
    )


def environment(given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that travel, and the names of those that look like secrets and do not."""
    variables = {name: given[name] for name in PLAIN if given.get(name)}
    # The home folder of `~` is the cluster's: the driver there expands it.
    variables["RLSYS_RUNS"] = given.get("RLSYS_RUNS") or "~/rlsys-runs"
    if not variables["RLSYS_RUNS"].startswith(("/", "~")):
        sys.exit(f"rlsys: RLSYS_RUNS={variables['RLSYS_RUNS']} would lie in the job's own folder, which Ray removes")
    if "RLSYS_DATA" in variables:
        variables["RLSYS_DATA"] = os.path.abspath(variables["RLSYS_DATA"])
    kept_back = [name for name in given if SECRET.fullmatch(name) and not NOT_SECRET.fullmatch(name) and given[name]]
    return variables, sorted(kept_back)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
