#!/bin/bash
# Unpacks PostgreSQL 18 from a newer Debian suite into a folder of its own, with the libraries that it needs, and makes
# the programs run from there, so that nothing of this machine's own installation changes.
#
#   HOLDFAST_PG_ROOT        where to: default /var/cache/holdfast/postgresql for root, so that user postgres can read
#                           it, and ~/.cache/holdfast/postgresql for others. The programs are then in
#                           18/usr/lib/postgresql/18/bin there, where the tests look.
#   HOLDFAST_DEBIAN_MIRROR  where from: default is the mirror that apt uses here.
#   HOLDFAST_DEBIAN_SUITES  the suites to try; default "forky sid".
#
# Atomic: the name 18 appears when the programs have proved to work. Does nothing if they are there already.
set -euo pipefail

major=18
say() { printf '%s\n' "install-postgres-$major: $*" >&2; }
die() {
    say "$*"
    exit 1
}

shared_root=/var/cache/holdfast/postgresql
if [[ $(id -u) -eq 0 || -x $shared_root/$major/usr/lib/postgresql/$major/bin/postgres ]]; then
    default_root=$shared_root
else
    default_root=$HOME/.cache/holdfast/postgresql
fi
# Absolute, as the programs will carry it.
root=$(realpath -m "${HOLDFAST_PG_ROOT:-$default_root}")
# debootstrap is there, and only root has it in its path.
PATH=$PATH:/usr/sbin
read -r -a suites <<<"${HOLDFAST_DEBIAN_SUITES:-forky sid}"

# PostgreSQL refuses to run as root.
as_server_user() {
    if [[ $(id -u) -eq 0 ]]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups env LC_ALL=C HOME=/tmp "$@"
    else
        env LC_ALL=C "$@"
    fi
}

mirror() {
    if [[ -n ${HOLDFAST_DEBIAN_MIRROR:-} ]]; then
        echo "$HOLDFAST_DEBIAN_MIRROR"
        return
    fi
    local codename
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016 # the dollars are apt's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Release: $codename" |
        sed -n 1p
}

# Downloads the server with all that it depends on, each package checked against Debian's signature.
download() {
    local into=$1 from suite
    from=$(mirror)
    [[ -n $from ]] || die "apt knows no Debian mirror here; set HOLDFAST_DEBIAN_MIRROR"
    for suite in "${suites[@]}"; do
        say "downloading from suite $suite"
        # Every suite is laid out as sid is, and an older debootstrap has never heard of a newer suite.
        if debootstrap --download-only --variant=minbase --force-check-gpg \
            --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
            --include="postgresql-$major,postgresql-client-$major,openssl-provider-legacy" \
            "$suite" "$into" "$from" /usr/share/debootstrap/scripts/sid >"$into.log" 2>&1; then
            return
        fi
        tail -n3 "$into.log" >&2
        rm -rf "$into"
    done
    die "none of these suites gave PostgreSQL $major: ${suites[*]}"
}

# Unpacks the programs and every library, and leaves out what only a whole system needs.
unpack() {
    local from=$1 into=$2 package name
    for package in "$from"/var/cache/apt/archives/*.deb; do
        name=${package##*/}
        case ${name%%_*} in
        libperl* | libc-bin | libc-l10n) ;;
        "postgresql-$major" | "postgresql-client-$major" | openssl-provider-legacy | zlib1g | lib*)
            dpkg-deb --extract "$package" "$into"
            ;;
        esac
    done
    rm -rf "${into:?}"/usr/share/{doc,man,info,locale,lintian,bug} "${into:?}"/{etc,var}
}

# The programs get this folder's own loader, and look for libraries here first. It is DT_RPATH, not DT_RUNPATH: that
# one would not hold for the libraries of the libraries.
make_runnable() {
    local here=$1 loader libraries program
    loader=$(find "$here" -name 'ld-linux*.so.*' -path '*-linux-gnu/*' -print -quit)
    [[ -n $loader ]] || die "the C library's loader was not unpacked"
    libraries=${loader%/*}
    for program in "$here/usr/lib/postgresql/$major/bin"/*; do
        if [[ -f $program && ! -L $program ]] && [[ $(head -c4 "$program" | tr -d '\0') == $'\x7fELF' ]]; then
            patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
        fi
    done
    local foreign
    foreign=$("$loader" --list "$here/usr/lib/postgresql/$major/bin/postgres" | grep -F '=>' | grep -vF "=> $here/") ||
        return 0
    die "the server would use libraries of this machine: $foreign"
}

# Uses the programs as the tests will.
prove() {
    local bin=$1/usr/lib/postgresql/$major/bin work=$2
    mkdir -p "$work/socket"
    chmod 755 "$work"
    [[ $(id -u) -ne 0 ]] || chown -R postgres: "$work"
    local server=(--host "$work/socket" --username postgres)
    cd "$work"
    as_server_user "$bin/initdb" -D "$work/data" -U postgres -A trust --no-sync
    as_server_user tee -a "$work/data/postgresql.conf" <<-SETTINGS
		listen_addresses = ''
		unix_socket_directories = '$work/socket'
		summarize_wal = on
	SETTINGS
    as_server_user "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" start
    as_server_user "$bin/pgbench" "${server[@]}" -q -i -s 1 postgres
    as_server_user "$bin/pg_basebackup" "${server[@]}" -D "$work/full" --checkpoint=fast --no-sync
    as_server_user "$bin/pgbench" "${server[@]}" -t 100 postgres
    as_server_user "$bin/pg_basebackup" "${server[@]}" -D "$work/incremental" --checkpoint=fast --no-sync \
        --incremental="$work/full/backup_manifest"
    as_server_user "$bin/pg_combinebackup" --no-sync -o "$work/combined" "$work/full" "$work/incremental"
    as_server_user "$bin/pg_verifybackup" "$work/combined"
    as_server_user "$bin/pg_amcheck" "${server[@]}" --install-missing --heapallindexed postgres
    as_server_user "$bin/psql" "${server[@]}" -Xq -c 'create extension pg_prewarm'
    as_server_user "$bin/pg_ctl" -D "$work/data" -w -m fast stop
    cd /
}

if compgen -G "/usr/lib/postgresql/$major/bin/initdb" >/dev/null; then
    say "Debian's own is installed"
    exit 0
fi
if as_server_user "$root/$major/usr/lib/postgresql/$major/bin/postgres" --version 2>/dev/null; then
    exit 0
fi
for tool in debootstrap patchelf setpriv; do
    command -v "$tool" >/dev/null || die "$tool is missing: run scripts/install-deps.sh"
done
[[ $(id -u) -ne 0 ]] || id postgres >/dev/null || die "there is no user postgres: run scripts/install-deps.sh"

mkdir -p "$root"
[[ $(id -u) -ne 0 || -n ${HOLDFAST_PG_ROOT:-} ]] || chmod 755 "${root%/*}" "$root"
work=$(mktemp -d "/tmp/holdfast-postgres-$major.XXXXXX")
here=$(mktemp -d "$root/postgresql-$major.XXXXXX")
clean_up() {
    if [[ -e $work/data/postmaster.pid ]]; then
        as_server_user "$here/usr/lib/postgresql/$major/bin/pg_ctl" -D "$work/data" -w -m immediate stop >&2 || true
    fi
    rm -rf "$work"
    # Unless it is the one in use by now.
    [[ $(readlink "$root/$major" 2>/dev/null) == "${here##*/}" ]] || rm -rf "$here"
}
trap clean_up EXIT

download "$work/download"
say "unpacking"
unpack "$work/download" "$here"
chmod 755 "$here"
make_runnable "$here"
say "trying it"
if ! prove "$here" "$work" >"$work/prove.log" 2>&1; then
    tail -n20 "$work/prove.log" >&2
    die "the programs do not work"
fi
old=$(readlink "$root/$major" 2>/dev/null || true)
ln -s "${here##*/}" "$work/link"
# A link made beside and renamed over: there is no moment without a whole one.
cp -P "$work/link" "$here.link"
mv -fT "$here.link" "$root/$major"
if [[ $old == postgresql-$major.* && $old != "${here##*/}" ]]; then
    rm -rf "${root:?}/$old"
fi
as_server_user "$root/$major/usr/lib/postgresql/$major/bin/postgres" --version
