#!/usr/bin/env bash
# bash launch/quickstart.sh [hydra overrides]: the environment if it is missing, then the embedded main job.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu}"
say "training: rlsys train experiment=quickstart $*"
exec "$VENV/bin/rlsys" train experiment=quickstart "$@"
