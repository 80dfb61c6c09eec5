#!/bin/sh
# Makes .venv with qvl and everything that its tests need. `make setup` calls this.
#
# A second run is instant: .venv/.setup-done says what was installed. After a run that was cut short
# while packages were being written (.venv/.setup-begun is left), the next starts from an empty .venv.
# Where packages come from is pip's own configuration; nothing here names an index.
# Exit codes: 2 no Python, 6 no room, 8 no packages, 1 anything else.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
DONE=$VENV/.setup-done
BEGUN=$VENV/.setup-begun
LOG=$VENV/setup.log
NEEDED_KB=3145728 # 3 GiB: torch's CPU build and the test tools take 1.5, pip's downloads as much

fail() { # exit code, what is wrong, what to do
    printf 'error: %s\n' "$2" >&2
    printf 'hint: %s\n' "$3" >&2
    exit "$1"
}

find_python() { # prints the first command that is a Python 3.11 or newer and can make a .venv
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c '
import sys, ensurepip, venv
sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    found=$(python3 --version 2>/dev/null) || found="no python3"
    fail 2 "qvl needs Python 3.11 or newer with its venv module; found $found" \
        "install it (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python), then run 'make setup' again"
}

fingerprint() { # changes when what is to be installed changes, or when the folder has moved
    echo "$(cat pyproject.toml scripts/setup.sh | cksum) $(pwd)"
}

check_room() {
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    [ "$free_kb" -ge "$NEEDED_KB" ] ||
        fail 6 "the disk has $((free_kb / 1024)) MiB free here, setup needs $((NEEDED_KB / 1024))" \
            "free some space, then run 'make setup' again"
}

half_written() { # cut short after the downloads, which change nothing in .venv
    [ -e "$BEGUN" ] && grep -q '^[^ ]* Installing collected packages' "$LOG"
}

make_venv() { # keeps a sound .venv, makes a new one in place of a half-written or broken one
    if ! half_written && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python) || exit $?
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV" ||
        fail 1 "$python could not make $VENV" "see the lines above"
}

explain_pip_failure() {
    if grep -q 'No space left on device' "$LOG"; then
        fail 6 "the disk filled up while packages were being installed" \
            "free some space (also in ${TMPDIR:-/tmp}), then run 'make setup' again"
    elif grep -qE 'NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|SSLError|ProxyError|ProtocolError|ConnectionResetError|HTTP error|HTTPError' "$LOG"; then
        fail 8 "the package registry does not answer, so nothing could be installed" \
            "check the network, or tell pip about your proxy or mirror ('pip config', PIP_INDEX_URL, HTTPS_PROXY), then run 'make setup' again"
    elif grep -q 'No matching distribution found' "$LOG"; then
        fail 8 "the registry has no build for this machine: $(grep -o 'No matching distribution found for .*' "$LOG" | tail -n 1)" \
            "use a 64-bit Python 3.11 to 3.13, or an index that has it; the whole story is in $LOG"
    fi
    fail 1 "pip could not install the packages: $(grep -o 'ERROR: .*' "$LOG" | tail -n 1)" \
        "the whole story is in $LOG"
}

show_progress() { # of all that pip says, what a person waits for
    while IFS= read -r line; do
        case $line in
        *Downloading*" MB)" | *Downloading*" GB)") echo "downloading ${line#*Downloading }" ;;
        "Installing collected packages"*) echo "installing" ;;
        esac
    done
}

install() {
    echo "fetching packages (the log is $LOG)"
    rm -f "$DONE"
    : >"$LOG"
    touch "$BEGUN"
    {
        "$VENV/bin/python" -m pip install --log "$LOG" --disable-pip-version-check --no-input \
            --retries 3 --progress-bar off --editable '.[dev]' 2>&1 && fingerprint >"$DONE"
    } | show_progress
    [ -s "$DONE" ] || explain_pip_failure
    rm -f "$BEGUN"
}

if [ ! -e "$BEGUN" ] && [ "$(cat "$DONE" 2>/dev/null)" = "$(fingerprint)" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
began=$(date +%s)
check_room
make_venv
install
size_mb=$(du -sk "$VENV" | awk '{print int($1 / 1024)}')
echo "ready in $(($(date +%s) - began)) s; .venv takes $size_mb MB. Next: make demo"
