# Sourced by the set-up scripts: which Python to use, and how to speak.

say() { printf 'mailkeep set-up: %s\n' "$*"; }

# The first interpreter of version 3.11 or newer ($PYTHON first); prints nothing when there is none.
# The real one, not a launcher in front of it nor the .venv that may be active and is about to be remade.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        "$candidate" -c 'import sys
sys.version_info < (3, 11) and sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null && return
    done
    return 0
}

# True when a C compiler finds what pymilter includes; $1 is the interpreter to build for.
can_build_milter() {
    local headers
    headers=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    printf '#include <Python.h>\n#include <libmilter/mfapi.h>\n' \
        | cc -E -I"$headers" - >/dev/null 2>&1
}
