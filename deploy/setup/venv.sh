#!/usr/bin/env bash
# Makes .venv with mailkeep installed in place and everything its checks need; quick when nothing changed.
#
# Without a compiler or libmilter's headers the milter front is left out, loudly; once they are
# there the next run adds it. Touches nothing outside .venv.
set -euo pipefail
here=$(dirname "$0")
. "$here/python.sh"
cd "$here/../.."

python=$(find_python)
if [ -z "$python" ]; then
    say "Python 3.11 or newer is needed; set PYTHON=/path/to/python3 if it is somewhere special"
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    say "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    exit 1
fi

extras=dev
if can_build_milter "$python"; then
    extras=milter,dev
else
    say "NO MILTER FRONT: a C compiler, Python.h or libmilter/mfapi.h is missing (apt-get install gcc libc6-dev python3-dev libmilter-dev)"
fi

# What the environment was made from; written last, so that an interrupted run is done again.
stamp=.venv/.made-from
wanted="$extras $("$python" -c 'import sys; print(sys.version, sys.executable)' | tr '\n' ' ') $(cksum <pyproject.toml)"
if [ -x .venv/bin/mailkeep ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

say "making .venv with $("$python" --version)"
rm -rf .venv
"$python" -m venv .venv
say "installing mailkeep[$extras] and what it needs (a minute or so)"
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input -e ".[$extras]"
printf '%s\n' "$wanted" >"$stamp"
say "ready: .venv/bin/mailkeep"
