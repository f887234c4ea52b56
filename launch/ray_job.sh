#!/usr/bin/env bash
# bash launch/ray_job.sh [--address URL] [hydra overrides]: the same run on a Ray cluster, with `ray job submit`.
#
# The folder that it is called in is shipped with rlsys (what git ignores is left out), the logs are followed, Ctrl-C
# stops following. Runs are written on the cluster under RLSYS_RUNS (default ~/rlsys-runs, of the home there) unless
# run_dir is given. Secrets are not sent: see docs/cluster.md.
here="$PWD"
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu}"
case "$here/" in "$ROOT"/*) here="$ROOT" ;; esac

address="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
if [ "${1:-}" = --address ]; then
    [ $# -ge 2 ] || die "--address needs a URL, as --address http://head:8265"
    address="$2"
    shift 2
fi
for override in "$@"; do
    case "$override" in
        run_dir=/* | run_dir=\~* | run_dir=\$* | run_dir=null) ;;
        run_dir=*) die "$override would lie in the job's own folder, which Ray removes: give an absolute one of the cluster" ;;
    esac
done

# Head, nodes and this client must hold the same token: ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
export RAY_AUTH_MODE=token
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    (umask 077 && "$VENV/bin/ray" get-auth-token --generate >/dev/null) || die "no Ray token, and none could be made"
    chmod go-rwx "$HOME/.ray/auth_token"  # Ray makes it readable for everyone
fi
"$VENV/bin/ray" job list --address "$address" >/dev/null 2>&1 || die "no Ray head that takes this token answers at" \
    "$address. Start one here with: PATH=$VENV/bin:\$PATH RAY_AUTH_MODE=token ray start --head"

package="$(mktemp -d)"
trap 'rm -rf "$package"' EXIT
environment=$("$VENV/bin/python" launch/job_package.py "$here" "$ROOT" "$package/job.zip")
say "submitting $here to $address: rlsys train cluster=running $*"
"$VENV/bin/ray" job submit --address "$address" --runtime-env-json "$environment" -- \
    python -m rlsys.cli train cluster=running "$@"
