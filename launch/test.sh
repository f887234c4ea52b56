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
# Two files at a time, where there is memory for two runs, each with as many threads as two processes leave. `-n 0` in
# the arguments: one after another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
free=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || echo 0)
exec "$VENV/bin/python" -m pytest -n "$([ "${free:-0}" -ge 12 ] && echo 2 || echo 0)" --dist loadfile --no-loadscope-reorder "$@"
