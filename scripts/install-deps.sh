#!/bin/bash
# Installs what Holdfast needs, from this machine's own Debian packages:
#
#   install-deps.sh demo    to build it and run the demo
#   install-deps.sh lint    to build it and run the linters
#   install-deps.sh bench   to build it and compare it with others: Debian's barman, and its pgbackrest unless PGBACKREST
#                           names another
#   install-deps.sh         everything, also for the tests
#
# Does nothing for what is there already; safe to run any number of times. Starts no service.
set -euo pipefail

say() { printf '%s\n' "install-deps: $*" >&2; }
die() {
    say "$*"
    exit 1
}

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for: $* (run as root, or install sudo)"
    fi
}

# apt waits for the package database by itself, but not for its lists: another apt may hold either.
apt_get() {
    local attempt
    for attempt in {1..30}; do
        if as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get -q -y \
            -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold "$@"; then
            return 0
        fi
        say "apt-get $1 failed, attempt $attempt of 30"
        sleep 10
    done
    die "apt-get $1 did not succeed"
}

is_installed() {
    local status
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) || return 1
    [[ $status == installed ]]
}

# Debian would make and start a cluster when PostgreSQL is installed. The tests make their own.
forbid_system_cluster() {
    local configuration=/etc/postgresql-common/createcluster.conf
    if is_installed postgresql-common || [[ -e $configuration ]]; then
        return
    fi
    as_root mkdir -p "${configuration%/*}"
    echo 'create_main_cluster = false' | as_root tee "$configuration" >/dev/null
}

# Debian starts the servers that it installs, now and at every boot. The tests start their own.
without_services() {
    local policy=/usr/sbin/policy-rc.d unit had_ssh=1
    is_installed openssh-server || had_ssh=0
    if [[ -e $policy ]]; then
        "$@"
    else
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        "$@" || {
            as_root rm -f "$policy"
            return 1
        }
        as_root rm -f "$policy"
    fi
    if [[ $had_ssh -eq 0 && -d /run/systemd/system ]]; then
        for unit in ssh.socket ssh.service; do
            as_root systemctl disable --quiet "$unit" || true
        done
    fi
}

install_packages() {
    local wanted=(build-essential pkg-config ca-certificates) missing=() package
    # `postgresql` is the version that this Debian carries, with contrib.
    local servers=(postgresql postgresql-client tzdata jq procps)
    # Stores: Ceph's gateway for S3, npm for Azurite, OpenSSH for SFTP.
    local stores=(ceph-common ceph-mon ceph-osd radosgw openssh-server openssl curl)
    command -v npm >/dev/null || stores+=(nodejs npm)
    # These unpack a newer one.
    local unpacking=(debootstrap debian-archive-keyring gpgv wget patchelf xz-utils zstd curl)
    case $purpose in
    demo) wanted+=("${servers[@]}") ;;
    lint) wanted+=(shellcheck) ;;
    bench)
        wanted+=("${servers[@]}" "${stores[@]}" python3 barman restic rsync zstd)
        [[ -n ${PGBACKREST:-} ]] || wanted+=(pgbackrest)
        ;;
    all) wanted+=("${servers[@]}" "${unpacking[@]}" "${stores[@]}" shellcheck) ;;
    esac
    for package in "${wanted[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    # Any server will do: some machines have `postgresql-N` without the metapackage.
    if compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        local kept=()
        for package in "${missing[@]}"; do
            [[ $package == postgresql || $package == postgresql-client ]] || kept+=("$package")
        done
        missing=("${kept[@]}")
    fi
    if [[ ${#missing[@]} -eq 0 ]]; then
        return
    fi
    say "installing ${missing[*]}"
    forbid_system_cluster
    apt_get update
    without_services apt_get install --no-install-recommends "${missing[@]}"
}

check_rust() {
    if ! command -v cargo >/dev/null; then
        # rustup puts it there, and only a new shell knows.
        [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust with rustup (see the page 'Install' of the Rust project), then run this again"
    local have need manifest
    manifest=$(dirname "${BASH_SOURCE[0]}")/../Cargo.toml
    need=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$manifest")
    have=$(rustc --version | cut -d' ' -f2)
    if [[ $(printf '%s\n' "$need" "$have" | sort -V | head -n1) != "$need" ]]; then
        die "Rust $need or newer is needed, this is $have: run 'rustup update'"
    fi
    local component
    for component in fmt clippy; do
        if [[ $purpose == lint || $purpose == all ]] && ! cargo "$component" --version >/dev/null 2>&1; then
            rustup component add "${component/fmt/rustfmt}"
        fi
    done
    if [[ $purpose == all ]] && ! cargo nextest --version >/dev/null 2>&1; then
        say "installing cargo-nextest"
        cargo install cargo-nextest --locked
    fi
}

purpose=${1:-all}
[[ $purpose =~ ^(demo|lint|bench|all)$ ]] || die "there is no purpose '$purpose': demo, lint, bench or nothing"
[[ -r /etc/debian_version ]] || die "this is not Debian; install PostgreSQL, a C compiler, debootstrap and patchelf by hand"
install_packages
check_rust
say "everything is there"
