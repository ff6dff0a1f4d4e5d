#!/usr/bin/env bash
# Installs the system packages that building, testing and the demo need, and only those that are missing;
# `packages.sh bench` also the programs that the benchmarks compare with, `packages.sh ceph` what `make ceph` starts.
#
# Never removes or replaces a package (another mail server stays), never starts a service, changes
# nothing in /etc that a package does not bring itself. Without root, sudo or apt it prints what to
# install and ends well: set-up goes on, and the demo uses what is there.
set -euo pipefail
. "$(dirname "$0")/python.sh"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

has_dovecot_part() {
    local folder
    for folder in /usr/lib/dovecot /usr/libexec/dovecot /usr/local/libexec/dovecot; do
        [ -x "$folder/$1" ] && return
    done
    return 1
}

# What is missing, looked up by what it does and not by a package's name: a compiler is a compiler.
build=()
servers=()
python=$(find_python)
if [ -z "$python" ]; then
    build+=(python3.11 python3.11-venv python3.11-dev)   # a system whose python3 is older
    python=false
else
    # Only the distribution's own Python comes in pieces.
    "$python" -c 'import venv, ensurepip' 2>/dev/null || build+=(python3-venv)
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$headers/Python.h" ] || build+=(python3-dev)
fi
printf '#include <stdlib.h>\n' | cc -E - >/dev/null 2>&1 || build+=(gcc libc6-dev)
[ -e /usr/include/libmilter/mfapi.h ] || build+=(libmilter-dev)
command -v dovecot >/dev/null || servers+=(dovecot-core)
has_dovecot_part lmtp || servers+=(dovecot-lmtpd)
has_dovecot_part imap || servers+=(dovecot-imapd)
postfix=()
command -v postconf >/dev/null || postfix+=(postfix)
peers=()
if [ "${1:-}" = bench ]; then
    command -v restic >/dev/null || peers+=(restic)
    command -v borg >/dev/null || peers+=(borgbackup)
    command -v zstd >/dev/null || peers+=(zstd)
fi
if [ "${1:-}" = ceph ]; then
    command -v ceph-mon >/dev/null || peers+=(ceph-mon)   # brings monmaptool
    command -v ceph-osd >/dev/null || peers+=(ceph-osd)
    command -v ceph >/dev/null || peers+=(ceph-common)
    command -v radosgw >/dev/null || peers+=(radosgw)
    compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || peers+=(libfaketime)
fi

missing=("${build[@]}" "${servers[@]}" "${postfix[@]}" "${peers[@]}")
if [ ${#missing[@]} -eq 0 ]; then
    say "system packages: all there"
    exit 0
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo -n)
    if ! sudo -n true 2>/dev/null; then
        say "MISSING, and neither root nor passwordless sudo to install it: ${missing[*]}"
        say "as root: apt-get install --no-install-recommends ${missing[*]}"
        exit 0
    fi
fi
if ! command -v apt-get >/dev/null; then
    say "MISSING, and no apt here; install what your system calls: ${missing[*]}"
    exit 0
fi

# policy-rc.d is how Debian's packages ask whether they may start their service; 101 means no.
policy=/usr/sbin/policy-rc.d
ours=no
cleanup() {
    [ "$ours" = no ] || "${root[@]}" rm -f "$policy"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
mark="mailkeep set-up: there only while it installs"
# One that bears our mark was left by a run that was killed.
if [ ! -e "$policy" ] || grep -q "$mark" "$policy"; then
    ours=yes
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" | "${root[@]}" tee "$policy" >/dev/null
    "${root[@]}" chmod 755 "$policy"
fi

# A new Postfix is left without a configuration, so it cannot run by itself.
preset_postfix() {
    printf 'postfix postfix/main_mailer_type select No configuration\n' \
        | "${root[@]}" debconf-set-selections
}

install_packages() {
    say "installing: $*"
    local log
    log=$(mktemp)
    if "${root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -y -q --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=300 "$@" </dev/null >"$log" 2>&1; then
        rm -f "$log"
        return
    fi
    tail -n 12 "$log"
    rm -f "$log"
    say "COULD NOT INSTALL: $*"
    return 1
}

say "reading the package lists (apt-get update)"
"${root[@]}" apt-get update -q </dev/null >/dev/null 2>&1 || say "apt-get update failed; trying with the lists that are here"

failed=no
[ ${#build[@]} -eq 0 ] || install_packages "${build[@]}" || failed=yes
if [ ${#servers[@]} -gt 0 ]; then
    install_packages "${servers[@]}" || failed=yes
fi
if [ ${#peers[@]} -gt 0 ]; then
    install_packages "${peers[@]}" || failed=yes
fi
if [ ${#postfix[@]} -gt 0 ]; then
    preset_postfix
    # Apart from the rest: where another mail server is installed, apt refuses just this one.
    install_packages "${postfix[@]}" || failed=yes
fi
# What was not there before this run shall not start at the next boot either.
if [ -d /run/systemd/system ]; then
    for package in "${servers[@]}" "${postfix[@]}" "${peers[@]}"; do
        case $package in
            dovecot-core) "${root[@]}" systemctl disable --quiet dovecot.service dovecot.socket 2>/dev/null || true ;;
            ceph-mon) "${root[@]}" systemctl disable --quiet ceph.target ceph-mon.target ceph-crash.service rbdmap.service 2>/dev/null || true ;;
            ceph-osd) "${root[@]}" systemctl disable --quiet ceph-osd.target 2>/dev/null || true ;;
            radosgw) "${root[@]}" systemctl disable --quiet ceph-radosgw.target 2>/dev/null || true ;;
            postfix) "${root[@]}" systemctl disable --quiet postfix.service 2>/dev/null || true ;;
        esac
    done
fi
if [ "$failed" = yes ]; then
    say "some packages are missing; going on with what is there"
else
    say "system packages: all there now"
fi
