#!/bin/bash
# Installs Azurite, a server of Azure Blob's protocol for the tests, into a folder of its own:
#
#   HOLDFAST_AZURITE_ROOT   where to: default /var/cache/holdfast/azurite
#
# Atomic: the folder appears when the program has proved to work. Does nothing if it is there already.
set -euo pipefail

version=3.37.0
root=${HOLDFAST_AZURITE_ROOT:-/var/cache/holdfast/azurite}
program=node_modules/.bin/azurite-blob
say() { printf '%s\n' "install-azurite: $*" >&2; }

if [[ -x $root/$program ]] && "$root/$program" --version >/dev/null 2>&1; then
    exit 0
fi
command -v npm >/dev/null || {
    say "npm is missing: run scripts/install-deps.sh"
    exit 1
}
mkdir -p "$(dirname "$root")"
new=$(mktemp -d "$root.XXXXXX")
trap 'rm -rf "$new"' EXIT
say "installing azurite $version in $root"
npm install --prefix "$new" --no-audit --no-fund --no-save --silent "azurite@$version"
"$new/$program" --version >/dev/null
chmod 755 "$new"
rm -rf "$root"
mv "$new" "$root"
say "everything is there"
