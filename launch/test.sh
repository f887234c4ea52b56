#!/usr/bin/env bash
# bash launch/test.sh [pytest args]: the environment with dev tools, then lint, types and tests.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env "${RLSYS_EXTRA:-cpu},dev"
ensure_debian_packages chromium bubblewrap libseccomp2
export HF_HUB_OFFLINE=1 RLSYS_DATA="${RLSYS_DATA:-$ROOT/../shared/data}"
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "types"
"$VENV/bin/mypy"
say "tests"
# Two files at a time, each test with as many threads as two processes leave. `-n 0` in the arguments: one after another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
