#!/usr/bin/env bash
# Makes the fixture repository of the current format version: a small cluster, its backup and log, and the hashes of all
# files. A fixture is made once for each version of the format and then kept for ever; see crates/recovery/tests/fixture.rs.
#   scripts/make-fixture.sh fixtures/repository-1
set -Eeuo pipefail
target=$(realpath -m "${1:?name a directory for the fixture}")
[[ ! -e $target ]] || { echo "$target exists; a fixture is never made again" >&2; exit 1; }
holdfast=$(realpath "${HOLDFAST:-target/release/holdfast}")
bin=${PGBIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | head -n 1)}

work=$(mktemp -d /tmp/holdfast-fixture-XXXXXX)
as_server=()
if [[ $(id -u) -eq 0 ]]; then
  chown postgres "$work"
  as_server=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
trap '"${as_server[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
cd "$work"
run() { "${as_server[@]}" "$@"; }

run "$bin/initdb" -D data -U postgres -A trust -k --wal-segsize=1 --locale=C -E UTF8 --no-sync >/dev/null
run "$bin/pg_ctl" -D data -w -l log -o "-k $work -c listen_addresses='' -c autovacuum=off" start >/dev/null
sql() { run psql -X -q -v ON_ERROR_STOP=1 -h "$work" -U postgres "$@"; }
sql -c "create table messages(id bigint primary key, conversation_id bigint, seq bigint, body text)" \
  -c "insert into messages select n, n % 50, n / 50, repeat(md5(n::text), 1 + (n % 3)::int) from generate_series(1, 20000) n" \
  -c "create unlogged table presence as select n from generate_series(1, 1000) n" \
  -c "update messages set body = body || '!' where id % 7 = 0" -c "delete from messages where id % 11 = 0"
run mkdir repository
cat > holdfast.toml <<TOML
[repository.main]
path = "$work/repository"
identity_file = "$work/identity.txt"

[source.chat]
connection = "host=$work user=postgres dbname=postgres"
TOML
run "$holdfast" --quiet --config holdfast.toml init --new-identity identity.txt
run "$holdfast" --quiet --config holdfast.toml backup chat --fast
sql -c "select pg_create_restore_point('fixture')" >/dev/null
run "$bin/pg_ctl" -D data -m fast stop >/dev/null
run "$holdfast" --quiet --config holdfast.toml restore chat --to restored
(cd restored && find . -type f ! -name postgresql.auto.conf ! -name pg_control -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum) > hashes
mkdir -p "$target"
cp -r repository identity.txt hashes "$target/"
rm -rf "$target/repository/.tmp"
chmod -R u+rwX,go+rX "$target"
du -sh "$target"
