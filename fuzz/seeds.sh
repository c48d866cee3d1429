#!/bin/bash
# Gives each target something to begin with: files that PostgreSQL wrote, and small examples by hand.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
fixtures=../crates/pgformat/tests/fixtures/15

# seed TARGET NAME: what is read from here becomes that seed.
seed() {
    mkdir -p "corpus/$1"
    cat >"corpus/$1/seed-$2"
}

# Version 15; where the excerpt begins is in the page itself, and what does not fit is an error worth trying too.
while read -r name start; do
    # The log begins at a page with this number, of two bytes.
    page=$((16#${start#*/} >> 13))
    head=$(printf '\\x02\\x%02x\\x%02x\\x05\\x09' $((page & 255)) $((page >> 8)))
    { printf '%b' "$head" && head -c 24576 "$fixtures/$name.wal"; } | seed log "$name"
done <"$fixtures/excerpts.txt"

# A heap insert with a reference to a block, and a checkpoint-like record of main data only.
printf '\x02\x0a\x00\x18\x00\x00\x20\x00\x00\x7f\x06\x00\x00\x05\x00\x00\x00\x00\x40\x00\x00\x07\x00\x00\x00\xff\x03abc' |
    seed records insert
printf '\x02\x02\x10\x12\x00\xff\x10\x7f\x06\x00\x00\x05\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00' | seed records create
printf '\x05\x01\x00\x0a\x00\xff\x08\x00\x00\x00\x00\x00\x00\x00\x00' | seed records commit

head -c 512 "$fixtures/pg_control" | seed control 15
{ printf '\x00' && cat "$fixtures/backup_label"; } | seed files label
printf '\x0116385 /srv/a\\\\b c\n16386 /srv/d\n' | seed files map
{ printf '\x06' && cat "$fixtures/00000002.history"; } | seed files history
printf '\x03pg_tblspc/16385/PG_15_202209061/5/16384_vm.2' | seed files tablespace
printf '\x03base/5/t3_16384' | seed files temporary

{ printf '\x00\x00\x20\x00\x00' && cat "$fixtures/pg_class-block-1.page"; } | seed codec stored
if command -v zstd >/dev/null; then
    { printf '\x01\x00\x20\x00\x00' && zstd -q -c --no-check "$fixtures/pg_class-block-1.page"; } | seed codec zstd
fi
printf '\x02\x00\x20\x00\x00\x01\x00' | seed codec pages
{ printf '\x00\x00' && cat "$fixtures/pg_class-block-1.page"; } | seed pages heap
{ printf '\x02\x03' && cat "$fixtures/pg_class-block-1.page"; } | seed pages repeated

printf '\x10\x00\x01\x10some content that fills more than one frame' | seed object flip
printf 'HFST\x02\x00\x01\x00' | seed object header
printf '\x02\x00\x00\x01\x00\x0apgdata/top\xed\x03\x00\x01' | seed map directory
printf '\x01\x00\x00\x00' | seed map empty

cat <<'JSON' | seed manifest small
{"summary":{"id":"20261121T094928Z-0123456789abcdef","source":"chat","kind":"incremental",
"server_version":150018,"system_id":"7710553963567600584","timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000100",
"segment_size":16777216,"started_at":1795253368000000,"stopped_at":1795253369000000,"from_standby":false,"bytes":1,
"files":1,"stored_bytes":1,"damaged_pages":0,"made_by":"holdfast 0.1.0"},"maps":[],"packs":[],"backup_label":"00ff",
"pg_control":"","tablespaces":[{"oid":1,"name":"a","location":"/a"}],"owner":{"user":"a","group":"b"},
"data_directory":"/a","config_files":["/b"],"parameters":[["a","b"]],
"damage":[{"path":"a","block":1,"reason":"b"}]}
JSON
printf '\x00\x01\x00\x01\xff\x0c\x05\x02\x80\x80\x04\x00\x01\x00\x01\x06' | seed changes page
printf '\x00\x01\x01\x80\x80\x04\x03why\x01\xff\x0c\x05\x06\x80\x80\x04\xad\x02\x03\x00\x03\x06\x05\x01\xe8\xff\x07\x00\x01\x01\x00\x01\x01\x80\x35\x01\x01\x00\x01\x00\x01\x00' |
    seed changes several
cat <<'JSON' | seed index index
{"commits":2,"aborts":1,"moments":[{"at":1795253368000000,"lsn":"0/2000028"}],
"restore_points":[{"name":"a","at":1795253368000000,"lsn":"0/2000028"}],
"tablespaces":[{"oid":1,"location":"/a","lsn":"0/2000028"}]}
JSON
printf '{"start":"0/2000000","end":"0/3000000","digest":"aa"}' | seed index summary
printf '000000010000000A000000FE' | seed index segment
printf "host=/run/postgresql,db2 port=5432,5433 user='a b' sslmode=verify-full target_session_attrs=primary" |
    seed conninfo keywords
printf 'postgresql://a:b%%20c@[::1]:5433,db2/postgres?target_session_attrs=any&connect_timeout=3' | seed conninfo uri
