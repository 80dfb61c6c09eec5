#!/bin/sh
# Is what git keeps fit to be kept? `make check` calls this; without git there is nothing to check.
set -eu
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || exit 0
failed=0

complain() { # what is wrong, the files
    [ -z "$2" ] && return
    printf 'error: %s\n%s\n' "$1" "$2" >&2
    failed=1
}

complain "tracked although .gitignore names them" "$(git ls-files -ci --exclude-standard)"
complain "over 4 MiB (only the embedded model may be)" "$(git ls-files -z |
    xargs -0 -r du -k 2>/dev/null | awk '$1 > 4096 && $2 !~ /^src\/qvl\/vlm\/sprout\// {print $2}')"
complain "merge conflict left" "$(git grep -lE '^(<<<<<<<|>>>>>>>) ' || true)"
complain "paths of one machine" "$(git grep -nIF -e "$PWD/" || true)"
complain "pickled data" "$(git ls-files '*.pkl' '*.pt' '*.pth' '*.bin')"
exit $failed
