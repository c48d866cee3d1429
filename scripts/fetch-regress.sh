#!/bin/bash
# Fetches PostgreSQL's own regression tests from Debian's source packages, which its binary packages do not have:
#
#   fetch-regress.sh MAJOR...
#
#   HOLDFAST_PG_ROOT        where to, as for install-postgres-18.sh: the tests are then in regress-MAJOR there.
#   HOLDFAST_DEBIAN_MIRROR  where from: default is the mirror that apt uses here.
#   HOLDFAST_DEBIAN_SUITES  the suites to try; default is this machine's own, then "forky sid".
#
# apt does the work, with lists of its own, so that nothing of this machine changes, and checks Debian's signature.
# Atomic. Does nothing if they are there already.
set -euo pipefail

say() { printf '%s\n' "fetch-regress: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# Where install-postgres-18.sh would put it, too.
if [[ $(id -u) -eq 0 ]]; then
    default_root=/var/cache/holdfast/postgresql
else
    default_root=$HOME/.cache/holdfast/postgresql
fi
root=$(realpath -m "${HOLDFAST_PG_ROOT:-$default_root}")
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
read -r -a suites <<<"${HOLDFAST_DEBIAN_SUITES:-$codename forky sid}"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -r $keyring ]] || die "$keyring is missing: run scripts/install-deps.sh"

mirror() {
    if [[ -n ${HOLDFAST_DEBIAN_MIRROR:-} ]]; then
        echo "$HOLDFAST_DEBIAN_MIRROR"
        return
    fi
    # shellcheck disable=SC2016 # the dollars are apt's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Release: $codename" |
        sed -n 1p
}

# Downloads one major version's source into the folder that it is run in.
download() {
    local major=$1 work=$2 from suite options
    from=$(mirror)
    [[ -n $from ]] || die "apt knows no Debian mirror here; set HOLDFAST_DEBIAN_MIRROR"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    # apt drops its rights to download; the folder of a private run is too narrow for that.
    options=(-q -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/list"
        -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root)
    for suite in "${suites[@]}"; do
        echo "deb-src [signed-by=$keyring] $from $suite main" >"$work/list"
        if apt-get "${options[@]}" update >"$work/log" 2>&1 &&
            apt-get "${options[@]}" source --download-only --tar-only "postgresql-$major" >>"$work/log" 2>&1; then
            return
        fi
        say "suite $suite does not give PostgreSQL $major"
    done
    tail -n3 "$work/log" >&2
    die "none of these suites gave the source of PostgreSQL $major: ${suites[*]}"
}

fetch() {
    local major=$1 work here
    if [[ -r $root/regress-$major/parallel_schedule ]]; then
        return
    fi
    mkdir -p "$root"
    work=$(mktemp -d "$root/fetch-regress.XXXXXX")
    # shellcheck disable=SC2064 # this very folder
    trap "rm -rf '$work'" EXIT
    say "fetching the regression tests of PostgreSQL $major"
    (cd "$work" && download "$major" "$work")
    here=$work/regress
    mkdir "$here"
    tar --extract --file "$work"/*.orig.tar.* --directory "$here" --strip-components 4 --no-same-owner \
        --wildcards '*/src/test/regress/*'
    [[ -r $here/parallel_schedule ]] || die "the source of PostgreSQL $major holds no regression tests where they should be"
    # For the servers' user.
    chmod -R a+rX "$here"
    rm -rf "$root/regress-$major"
    mv -T "$here" "$root/regress-$major"
    rm -rf "$work"
    trap - EXIT
}

[[ $# -gt 0 ]] || die "which version? fetch-regress.sh MAJOR..."
for major in "$@"; do
    [[ $major =~ ^[0-9]+$ ]] || die "'$major' is no major version"
    fetch "$major"
done
