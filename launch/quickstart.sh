#!/usr/bin/env bash
# bash launch/quickstart.sh [overrides]: makes the environment if it is missing, then trains experiment=quickstart.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu}"
say "training: rlsys train experiment=quickstart $*"
exec "$VENV/bin/rlsys" train experiment=quickstart "$@"
