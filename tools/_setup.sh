# Shared by tools/demo, tools/test, tools/lint and tools/docs: find a Python, make a virtual
# environment, install into it.
# Sourced, not run. Every failure the user can mend is one line on stderr and exit code 2.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Settings from outside must not leak into the environments made here.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# python_version PYTHON: "3.12" on stdout; fails where PYTHON is not there or does not run
# (a pyenv shim, for one, can be on the path and not run).
python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# find_python VERSION...: the first Python on the path of one of these versions that can make
# virtual environments, in $FOUND; otherwise $FOUND is empty and $MISSING says why.
# $PYTHON, where set, is the only candidate.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3 python) candidate version
    FOUND=""
    MISSING="no Python ${*: -1} to $1 on the path; install one, or set PYTHON=/path/to/python"
    if [[ $# -eq 1 ]]; then MISSING="no Python $1 on the path"; fi
    if [[ -n "${PYTHON:-}" ]]; then
        candidates=("$PYTHON")
        MISSING="PYTHON=$PYTHON is no Python ${*: -1} to $1"
    fi
    for candidate in "${candidates[@]}"; do
        version="$(python_version "$candidate")" || continue
        [[ " $* " == *" $version "* ]] || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            FOUND="$candidate"
            return
        fi
        MISSING="$candidate lacks the modules venv and ensurepip (Debian, Ubuntu: apt install python$version-venv)"
    done
}

# setup_venv FOLDER EXTRAS VERSION...: a virtual environment under ROOT with the package, editable,
# and these extras (comma-separated, may be empty); its Python is in $VENV_PYTHON. What is already
# installed as setup.cfg wants it is left alone. An environment that was interrupted in the making
# is made anew: pip cannot tell a half-installed package from a whole one.
setup_venv() {
    local folder="$1" extras="$2" venv="$ROOT/$1"
    shift 2
    local unfinished="$venv/.unfinished" log="$venv/install.log" reused=true version="" key stamp
    stamp="$venv/.installed-${extras:-base}"
    VENV_PYTHON="$venv/bin/python"

    if [[ ! -e "$unfinished" ]] && version="$(python_version "$VENV_PYTHON")" &&
        [[ " $* " == *" $version "* ]] && "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 &&
        [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$version" ]]; then
        key="$(install_key "$extras")"
        if [[ -e "$stamp" && "$(cat "$stamp")" == "$key" ]]; then return; fi
    else
        reused=false
        find_python "$@"
        [[ -n "$FOUND" ]] || die "$MISSING"
        echo "making $folder with $("$FOUND" --version)"
        mkdir -p "$venv" && touch "$unfinished" || die "cannot write $venv"
        "$FOUND" -m venv --clear "$venv" </dev/null || die "could not make $venv with $FOUND"
        key="$(install_key "$extras")"
    fi
    touch "$unfinished"

    local what=".${extras:+[$extras]}"
    echo "installing $what into $folder (the first time about 3 GB and some minutes; log in $folder/install.log)"
    if ! "$VENV_PYTHON" -m pip install --no-input --editable "$ROOT${extras:+[$extras]}" \
        >"$log" 2>&1 </dev/null; then
        if $reused; then rm -f "$unfinished"; fi # pip has put back what it had begun to change
        grep '^ERROR' "$log" | tail -n 1 | cut -c 1-300 >&2 || true
        die "$(install_failure "$log" "$folder")"
    fi
    echo "$key" >"$stamp"
    rm -f "$unfinished"
}

# install_key EXTRAS: changes when an installation has to be redone. The folder counts too, because
# an editable installation, like a virtual environment, does not survive being moved.
install_key() {
    "$VENV_PYTHON" - "$1" "$ROOT" <<'EOF'
import hashlib, pathlib, sys

extras, root = sys.argv[1:]
digest = hashlib.sha256(repr((extras, root, sys.version)).encode())
for name in ("setup.cfg", "pyproject.toml"):
    digest.update(pathlib.Path(root, name).read_bytes())
print(digest.hexdigest())
EOF
}

# install_failure LOG FOLDER: what went wrong in pip, in one line.
install_failure() {
    local log="$1" rest="; the whole of pip's output is in $2/install.log"
    if grep -q 'No space left on device' "$log"; then
        echo "the disk is full: an installation takes about 3 GB$rest"
    elif grep -qE 'connection broken by|ConnectionError|Max retries exceeded|from versions: none' "$log"; then
        echo "pip does not reach the package index: look at the network, or at pip's index-url and proxy$rest"
    else
        echo "pip could not install the package$rest"
    fi
}
