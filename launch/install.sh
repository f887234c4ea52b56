#!/usr/bin/env bash
# bash launch/install.sh [extras]: makes or updates the environment in .venv and starts nothing. RLSYS_EXTRA=gpu for CUDA.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu}${1:+,$1}"
say "ready: . .venv/bin/activate, then rlsys --help"
