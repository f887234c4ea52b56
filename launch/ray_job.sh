#!/usr/bin/env bash
# bash launch/ray_job.sh [--address URL] [hydra overrides]: the same run on a Ray cluster, with `ray job submit`.
#
# The working directory is shipped (what git ignores is left out), the logs are followed, Ctrl-C stops following.
# Runs are written on the cluster under RLSYS_RUNS (default ~/rlsys-runs) unless run_dir is given.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu}"

address="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
if [ "${1:-}" = --address ]; then
    [ $# -ge 2 ] || die "--address needs a URL, as --address http://head:8265"
    address="$2"
    shift 2
fi

# Head, nodes and this client must hold the same token: ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
export RAY_AUTH_MODE=token
if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    "$VENV/bin/ray" get-auth-token --generate >/dev/null || die "no Ray token, and none could be made"
fi
"$VENV/bin/ray" job list --address "$address" >/dev/null 2>&1 || die "no Ray head that takes this token answers at" \
    "$address. Start one here with: PATH=$VENV/bin:\$PATH RAY_AUTH_MODE=token ray start --head"

environment=$("$VENV/bin/python" - <<'PY'
import json, os
wanted = {"RLSYS_RUNS": os.environ.get("RLSYS_RUNS", os.path.expanduser("~/rlsys-runs"))}
for name in ("RLSYS_DATA", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN"):
    if os.environ.get(name):
        wanted[name] = os.path.abspath(os.environ[name]) if name == "RLSYS_DATA" else os.environ[name]
print(json.dumps({"env_vars": wanted, "working_dir": ".", "excludes": [".git", ".venv", "runs"]}))
PY
)
say "submitting to $address: rlsys train cluster=running $*"
exec "$VENV/bin/ray" job submit --address "$address" --runtime-env-json "$environment" -- \
    python -m rlsys.cli train cluster=running "$@"
