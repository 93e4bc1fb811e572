# Sourced by the commands beside it: makes .venv from the lock file, once, and sets ROOT and PY.
# A second run sees by a stamp that nothing has changed and takes no time.
set -euo pipefail

ROOT=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PY="$ROOT/.venv/bin/python"

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; $(python3 --version 2>/dev/null || echo 'no python3') is what PATH offers." \
        "Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

# What the environment depends on: the pins, the package's own metadata, and where it lies (the install is editable).
stamp_of() {
    { printf '%s\n' "$ROOT"; cat "$ROOT/requirements-dev.lock" "$ROOT/pyproject.toml"; } | sha256sum | cut -d' ' -f1
}

install() {
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$PY" "$@"
    else
        "$PY" -m pip --disable-pip-version-check install --quiet "$@"
    fi
}

make_environment() {
    local python
    if ! "$PY" -c '' 2>/dev/null; then
        python=$(find_python)
        printf 'Setting up %s with %s; this takes a minute or two, once …\n' "$ROOT/.venv" "$("$python" --version)" >&2
        if command -v uv >/dev/null 2>&1; then
            rm -rf "$ROOT/.venv"
            uv venv --quiet --python "$python" "$ROOT/.venv"
        else
            "$python" -c 'import ensurepip, venv' 2>/dev/null ||
                fail "Python's venv module is missing. On Debian and Ubuntu: sudo apt-get install python3-venv"
            "$python" -m venv --clear "$ROOT/.venv"
        fi
    else
        printf 'Bringing %s up to date with the lock file …\n' "$ROOT/.venv" >&2
    fi
    install --require-hashes -r "$ROOT/requirements-dev.lock" ||
        fail "The packages of requirements-dev.lock could not be installed; what is above says why. Run it again when that is mended."
    install --no-deps --no-build-isolation -e "$ROOT" || fail "The project itself could not be installed into $ROOT/.venv."
}

set_up() {
    local stamp="$ROOT/.venv/.stamp"
    if [[ -x $PY && -f $stamp && $(<"$stamp") == "$(stamp_of)" ]]; then
        return
    fi
    mkdir -p "$ROOT/.tools"
    (
        # Two commands started at once must not build one environment between them.
        if command -v flock >/dev/null 2>&1; then flock 9; fi
        if [[ ! -f $stamp || $(<"$stamp") != "$(stamp_of)" ]]; then
            make_environment
            stamp_of >"$stamp"
        fi
    ) 9>"$ROOT/.tools/setup.lock"
}

set_up
