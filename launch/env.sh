# Sourced by the other scripts: makes .venv in the repository root once, reuses it afterwards.
#   RLSYS_EXTRA=cpu|gpu   which backend to install (default cpu); the two are exclusive
#   PYTHON=python3.12     which interpreter to make the environment with
set -euo pipefail

TORCH_VERSION=2.13.0
# Where PyTorch publishes its CPU builds; asked only when pip, as configured, knows no CPU build.
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
MIN_MEMORY_GIB=5

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
STAMP="$VENV/.rlsys-ready"
cd "$ROOT"

say() { printf 'rlsys: %s\n' "$*"; }
die() { printf 'rlsys: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c \
            'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.11, 3.12 or 3.13: install one (Debian: apt-get install python3 python3-venv), or set PYTHON"
}

check_machine() {
    local python="$1" available
    "$python" -c 'import venv, ensurepip' 2>/dev/null \
        || die "$python cannot make virtual environments: install its venv (Debian: apt-get install python3-venv)"
    command -v g++ >/dev/null || command -v clang++ >/dev/null \
        || die "no C++ compiler (g++): PyTorch and vLLM compile kernels on demand. Install one (Debian: apt-get install g++)"
    available=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || echo "$MIN_MEMORY_GIB")
    [ "$available" -ge "${RLSYS_MIN_MEMORY_GIB:-$MIN_MEMORY_GIB}" ] \
        || die "only $available GiB of memory are free, Ray, engine and learner need about $MIN_MEMORY_GIB: close other" \
               "programs, lower rollout.kv_cache_gib, or set RLSYS_MIN_MEMORY_GIB to try anyway"
}

# A sum over everything that shapes the environment: when it changes, the environment is brought up to date.
environment_sum() { cat pyproject.toml launch/env.sh | cksum | tr ' ' '-'; }

# The stamp holds the sum and the extras installed, as "123-456 cpu,dev".
is_ready() {
    local sum extras extra
    [ -f "$STAMP" ] || return 1
    read -r sum extras <"$STAMP"
    [ "$sum" = "$(environment_sum)" ] || return 1
    for extra in ${1//,/ }; do
        case ",$extras," in *",$extra,"*) ;; *) return 1 ;; esac
    done
}

install_torch() {
    if [ "${RLSYS_EXTRA:-cpu}" = gpu ]; then
        "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION"
        return
    fi
    say "installing torch $TORCH_VERSION (CPU build)"
    # A plain `torch` would bring several GB of CUDA packages, so the CPU build is asked for by name.
    "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION+cpu" 2>/dev/null \
        || "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION" --index-url "$TORCH_CPU_INDEX"
}

# vLLM's CPU package asks for torchvision, torchaudio and torchcodec; CUDA builds of these break `import transformers`
# beside a CPU torch. Nothing here needs them.
remove_broken_torchvision() {
    if "$VENV/bin/pip" show --quiet torchvision 2>/dev/null && ! "$VENV/bin/python" -c 'import torchvision' 2>/dev/null; then
        say "removing torchvision, torchaudio and torchcodec: the builds that came do not fit the CPU torch"
        "$VENV/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
}

# ensure_debian_packages NAMES: installs those that are missing where that takes no questions, and says where it cannot.
# The tests that need one are skipped without it.
ensure_debian_packages() {
    local name missing=()
    command -v dpkg-query >/dev/null || { say "not Debian: tests that need $* run only where they are installed"; return; }
    for name in "$@"; do
        dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing: ${missing[*]}. Tests that need them are skipped (as root: apt-get install ${missing[*]})"
        return
    fi
    say "installing ${missing[*]} for the tests"
    apt_install "${missing[@]}" || { apt-get update -qq && apt_install "${missing[@]}"; } \
        || say "could not install ${missing[*]}: tests that need them are skipped"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1; }

# with_installed EXTRAS: these and those that an earlier call has installed for the same pyproject.toml.
with_installed() {
    local sum extras=""
    [ -f "$STAMP" ] && read -r sum extras <"$STAMP"
    [ "${sum:-}" = "$(environment_sum)" ] || extras=""
    printf '%s\n' "${1//,/$'\n'}" "${extras//,/$'\n'}" | sort -u | sed '/^$/d' | paste -sd,
}

# ensure_env EXTRAS: the environment exists, matches pyproject.toml and holds at least EXTRAS (as "cpu" or "cpu,dev").
ensure_env() {
    local extras="$1" python other
    python="$(find_python)"
    check_machine "$python"
    if is_ready "$extras"; then
        say "using the environment in .venv"
        return
    fi
    other=gpu
    [ "${RLSYS_EXTRA:-cpu}" = gpu ] && other=cpu
    if [ -f "$STAMP" ] && grep -qw "$other" <<<"$(tr ',' ' ' <"$STAMP")"; then
        die ".venv holds the '$other' extra, and torch and vLLM of the two exclude each other: remove .venv (rm -r .venv)" \
            "to change over, or set RLSYS_EXTRA=$other"
    fi
    say "preparing .venv with [$extras] (two to five minutes the first time)"
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV" || die "could not make $VENV"
    install_torch
    say "installing rlsys and what it needs"
    "$VENV/bin/pip" install --quiet -e ".[$extras]"
    remove_broken_torchvision
    printf '%s %s\n' "$(environment_sum)" "$(with_installed "$extras")" >"$STAMP"
}
