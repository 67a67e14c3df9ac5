#!/usr/bin/env bash
# Installs what the tests, the demo and the benchmarks need, by package name. Quick when all of it is there.
#
#   tests/install.sh [postgres] [drivers] [regress] [bench] [lint]      no argument: all five
#
# Works as root, or as a user who may sudo. Leaves no service running and no database cluster behind.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "needs root or sudo for: $*"
        sudo "$@"
    fi
}

# --- Debian packages ------------------------------------------------------------------------------------------------

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

APT_LISTS_ARE_FRESH=
apt_install() {
    command -v apt-get >/dev/null || fail "this is not Debian; install by hand: $*"
    if [ -z "$APT_LISTS_ARE_FRESH" ]; then
        as_root apt-get update -qq || say "some package lists could not be updated; trying with what is there"
        APT_LISTS_ARE_FRESH=yes
    fi
    say "apt: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold "$@" >/dev/null
}

# Installs those of the packages that are not there yet.
need() {
    local package missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# Some packages start a service on installation. What we put aside for that is put back at the end, come what may.
POLICY=/usr/sbin/policy-rc.d
CLUSTERS=/etc/postgresql-common/createcluster.conf
POLICY_IS_OURS=
CLUSTERS_SAVED=
put_back() {
    [ -z "$POLICY_IS_OURS" ] || as_root rm -f "$POLICY"
    [ -z "$CLUSTERS_SAVED" ] || as_root mv "$CLUSTERS_SAVED" "$CLUSTERS"
    POLICY_IS_OURS='' CLUSTERS_SAVED=''
}
trap put_back EXIT

start_no_services() {
    [ ! -e "$POLICY" ] || return 0 # somebody's rule; a container's says "never" as well
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
    POLICY_IS_OURS=yes
}

make_no_cluster() {
    need postgresql-common
    CLUSTERS_SAVED=$CLUSTERS.pgsluice-saved
    as_root cp -p "$CLUSTERS" "$CLUSTERS_SAVED"
    printf '\ncreate_main_cluster = false\n' | as_root tee -a "$CLUSTERS" >/dev/null
}

# --- the parts ------------------------------------------------------------------------------------------------------

install_postgres() {
    need build-essential pkg-config openssl python3
    if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        start_no_services
        make_no_cluster
        apt_install postgresql-15 postgresql-client-15
        put_back
    fi
}

install_python_packages() {
    local wanted=tests/drivers/requirements.txt stamp=.venv/installed-requirements.txt
    ! cmp -s "$wanted" "$stamp" || return 0
    say "Python packages into .venv"
    if [ ! -x .venv/bin/pip ]; then
        python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
        python3 -m venv .venv
    fi
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement "$wanted"
    cp "$wanted" "$stamp"
}

install_node_packages() {
    local folder=tests/drivers/node
    local stamp=$folder/node_modules/installed-package-lock.json
    ! cmp -s "$folder/package-lock.json" "$stamp" || return 0
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        apt_install nodejs npm
    fi
    say "Node packages into $folder/node_modules"
    (cd "$folder" && npm ci --no-audit --no-fund --loglevel=error)
    cp "$folder/package-lock.json" "$stamp"
}

install_drivers() {
    install_postgres
    need libpq-dev # psycopg2's source distribution asks pg_config about itself before it can be downloaded
    install_python_packages
    install_node_packages
    need libpostgresql-jdbc-java
    # Where these can't be had, tests/transparency/crowd.py leaves their drivers out and says so.
    (need golang-go golang-github-jackc-pgx-v4-dev golang-github-lib-pq-dev) || say "no Go drivers"
    (need ruby ruby-activerecord ruby-pg) || say "no Rails"
    command -v javac >/dev/null || apt_install default-jdk-headless
}

install_regress() {
    install_postgres
    # Where the sources can't be had, tests/all.py leaves the step out and says so.
    (need dpkg-dev bzip2 xz-utils && tests/transparency/fetch_regress.sh) || say "no regression tests of PostgreSQL"
}

install_bench() {
    install_postgres
    need strace
    if ! is_installed pgbouncer; then
        start_no_services
        apt_install pgbouncer
        put_back
    fi
}

install_lint() {
    command -v shellcheck >/dev/null || apt_install shellcheck
}

[ $# -gt 0 ] || set -- postgres drivers regress bench lint
for part in "$@"; do
    case $part in
        postgres) install_postgres ;;
        drivers) install_drivers ;;
        regress) install_regress ;;
        bench) install_bench ;;
        lint) install_lint ;;
        *) fail "unknown part '$part': postgres, drivers, regress, bench, lint" ;;
    esac
done
say "ready: $*"
