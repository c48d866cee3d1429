#!/bin/bash
# Shows what Holdfast is for, on a private PostgreSQL server under load, in about a minute:
#
#   a cluster is protected; a table is dropped by mistake; the machine dies and its data directory is gone; the cluster
#   is recovered twice, to the second before the mistake and to the last acknowledged write; a judge compares both with
#   what the writers were told.
#
# Usage: scripts/demo.sh [DIRECTORY_WITH_THE_PROGRAMS]     default: target/release
#
#   SIZE_MIB=200   how large the database is
#   PG_BIN=DIR     which PostgreSQL; default: the newest that is installed
#
# Exits with 0 only if the judge has nothing to complain about. All files are in one temporary directory, which is
# removed, and every process that is started is ended, whatever happens. Root runs it as user postgres, as PostgreSQL
# refuses to run as root.
set -euo pipefail

readonly promised_loss_seconds=1
readonly live_port=5432 before_port=5433 latest_port=5434
size_mib=${SIZE_MIB:-200}

die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

# --- The stage: a directory with copies of the programs, where an unprivileged user can reach them.

newest_postgres() {
    local bin
    {
        compgen -G '/usr/lib/postgresql/*/bin' || true
        compgen -G '/var/cache/holdfast/postgresql/*/usr/lib/postgresql/*/bin' || true
        compgen -G "$HOME/.cache/holdfast/postgresql/*/usr/lib/postgresql/*/bin" || true
    } | while read -r bin; do
        [[ -x $bin/initdb ]] && printf '%s %s\n' "$(basename "${bin%/bin}")" "$bin"
    done | sort -n | tail -n1 | cut -d' ' -f2
}

# Runs this script again, inside its stage.
enter_stage() {
    local programs=$1 program stage
    for program in holdfast lab; do
        [[ -x $programs/$program ]] || die "there is no $programs/$program: 'make demo' builds it"
    done
    for program in jq pgrep setpriv; do
        command -v "$program" >/dev/null || die "$program is missing: run scripts/install-deps.sh"
    done
    local bin=${PG_BIN:-$(newest_postgres)}
    [[ -n $bin ]] || die "no PostgreSQL is installed: run scripts/install-deps.sh"
    stage=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
    # shellcheck disable=SC2064 # this stage
    trap "rm -rf '$stage'" EXIT
    mkdir "$stage/bin"
    cp "$programs/holdfast" "$programs/lab" "${BASH_SOURCE[0]}" "$stage/bin"
    local environment=(env -i HOME="$stage" LC_ALL=C TERM="${TERM:-dumb}" PATH="$stage/bin:$bin:/usr/bin:/bin"
        HOLDFAST_DEMO_STAGE="$stage" HOLDFAST_CONFIG="$stage/holdfast.toml" SIZE_MIB="$size_mib")
    cd "$stage"
    if [[ $(id -u) -eq 0 ]]; then
        chown -R postgres: "$stage"
        exec setpriv --reuid=postgres --regid=postgres --init-groups "${environment[@]}" bash "$stage/bin/demo.sh"
    fi
    exec "${environment[@]}" bash "$stage/bin/demo.sh"
}

[[ -n ${HOLDFAST_DEMO_STAGE:-} ]] || enter_stage "$(realpath "${1:-target/release}")"

# --- Inside the stage.

stage=$HOLDFAST_DEMO_STAGE
receiver=0
workload=0

end_process() {
    [[ $1 -ne 0 ]] || return 0
    kill -KILL "$1" 2>/dev/null || true
    # It may have been waited for before.
    wait "$1" 2>/dev/null || true
}

leave_stage() {
    local status=$? name
    trap - EXIT INT TERM HUP
    for name in live before latest; do
        if [[ -e $stage/$name/postmaster.pid ]]; then
            pg_ctl -D "$stage/$name" -m immediate -w stop >/dev/null 2>&1 || true
        fi
    done
    end_process "$workload"
    end_process "$receiver"
    if [[ $status -eq 1 ]]; then
        for name in live.log receive.log workload.log before/holdfast.start.log latest/holdfast.start.log; do
            [[ -s $stage/$name ]] && printf '\n---- end of %s\n' "$name" >&2 && tail -n15 "$stage/$name" >&2
        done
    fi
    cd /
    rm -rf "$stage"
    exit "$status"
}
trap leave_stage EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

begun=$SECONDS
chapter() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }

# Shows a command as one would type it, runs it, and indents what it says.
type_and_run() {
    printf '  $ %s\n' "$*"
    "$@" 2>&1 | sed 's/^/    /'
}

# The same for one that answers in JSON, which is kept for the table.
type_and_keep() {
    local file=$1
    shift
    printf '  $ %s --json\n' "$*"
    "$@" --json >"$file" 2>"$file.errors" || {
        local status=$?
        sed 's/^/    /' "$file.errors" >&2
        return "$status"
    }
}

connection() { printf 'host=%s port=%s user=postgres dbname=%s' "$stage/socket" "$1" "$2"; }
sql() { psql -XAtq -v ON_ERROR_STOP=1 -d "$(connection "$1" im)" -c "$2"; }

wait_for() {
    local what=$1 attempt
    shift
    for attempt in {1..300}; do
        if "$@"; then return; fi
        sleep 0.1
    done
    die "waited 30 s for $what ($attempt attempts)"
}
receiver_streams() {
    [[ $(psql -XAtq -d "$(connection $live_port postgres)" \
        -c 'select count(*) from pg_replication_slots where active') == 1 ]]
}
is_gone() { ! kill -0 "$1" 2>/dev/null; }

chapter "1. A platform: $(postgres --version), $size_mib MiB of users, conversations, messages and orders"
mkdir "$stage/socket"
initdb -D "$stage/live" -U postgres -A trust -k --no-locale -E UTF8 --no-sync >/dev/null
cat >>"$stage/live/postgresql.conf" <<SETTINGS
listen_addresses = ''
unix_socket_directories = '$stage/socket'
port = $live_port
max_wal_size = 4GB
SETTINGS
pg_ctl -D "$stage/live" -l "$stage/live.log" -w start >/dev/null
lab create --conninfo "$(connection $live_port im)" --size-mib "$size_mib" |
    jq -r '"  \(.users) users, \(.devices) devices, \(.conversations) conversations, \(.messages) messages"'

chapter "2. Protect it: an encrypted repository, the log streamed into it"
cat >"$HOLDFAST_CONFIG" <<CONFIGURATION
[repository.main]
path = "$stage/repository"
identity_file = "$stage/identity.txt"

[source.chat]
connection = "host=$stage/socket port=$live_port user=postgres"
CONFIGURATION
say "$(basename "$HOLDFAST_CONFIG"):"
sed 's/^./    &/' "$HOLDFAST_CONFIG"
type_and_run holdfast init --new-identity identity.txt
say "\$ holdfast wal receive chat --create-slot &"
holdfast wal receive chat --create-slot >receive.log 2>&1 &
receiver=$!
wait_for "the receiver to stream" receiver_streams

chapter "3. Back it up while 24 writers work on it as fast as they can"
lab run --conninfo "$(connection $live_port im)" --journal journal --until-killed >workload.json 2>workload.log &
workload=$!
sleep 3
type_and_keep backup.json holdfast backup chat --fast
jq -r '"    snapshot \(.snapshot.id), log needed \(.snapshot.start_lsn) to \(.snapshot.stop_lsn)"' backup.json
sleep 4

chapter "4. A mistake"
# The second in which it happens is known: from an alarm, a shell history, a log.
mistake=$(sql $live_port "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
second_before=${mistake%.*}Z
devices=$(sql $live_port 'select count(*) from devices')
say "$mistake: drop table devices ($devices rows). The writers go on."
sql $live_port 'drop table devices'
sleep 4

chapter "5. A disaster: server and receiver killed with SIGKILL at one moment, the data directory removed"
kill -0 "$workload" 2>/dev/null || die "the writers have stopped"
postmaster=$(head -n1 live/postmaster.pid)
mapfile -t backends < <(pgrep -P "$postmaster")
# The postmaster stands still, so that nobody notices anything before all are dead.
kill -STOP "$postmaster"
kill -KILL "$receiver" "${backends[@]}" "$postmaster" 2>/dev/null || true
wait "$receiver" 2>/dev/null || true
receiver=0
say "$(date -u '+%FT%T.%3NZ')"
for process in "$postmaster" "${backends[@]}"; do
    wait_for "process $process to end" is_gone "$process"
done
rm -rf live
wait "$workload" || die "the writers failed"
workload=0
jq -r '"  \(.acknowledged) writes had been acknowledged, \(.rate | round) a second"' workload.json
type_and_run holdfast list chat
type_and_run holdfast verify

judge() {
    local name=$1 port=$2
    shift 2
    lab check --conninfo "$(connection "$port" im)" --journal journal --json "$@" >"$name.judged.json" || {
        jq -r '.findings[] | "\(.problem): \(.what)"' "$name.judged.json" >&2 || true
        die "the judge does not accept what was recovered ($name)"
    }
}

chapter "6. Recover to the second before the mistake"
type_and_keep before.json holdfast restore chat --to before --at "$second_before" --start --port $before_port
judge before $before_port --at "$second_before"
[[ $(sql $before_port 'select count(*) from devices') == "$devices" ]] || die "the dropped table is not as it was"
say "The judge: all well. The table is there, with $devices rows."

chapter "7. Recover to the last acknowledged write"
type_and_keep latest.json holdfast restore chat --to latest --start --port $latest_port
[[ -z $(sql $latest_port "select to_regclass('devices')") ]] || die "the dropped table is there after the mistake"
say "Here the table is missing: the mistake had happened. Fetch it from the other copy:"
say "\$ pg_dump --table devices … | psql …"
pg_dump --table devices -d "$(connection $before_port im)" |
    psql -Xq -v ON_ERROR_STOP=1 -d "$(connection $latest_port im)" >/dev/null
judge latest $latest_port --allow-loss "$promised_loss_seconds"
say "The judge: all well."

chapter "What was promised, and what was measured"
holdfast list chat --json >list.json
stored_bytes() { (cd "$stage/repository" && find "$@" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'); }
jq -rs --argjson promised "$promised_loss_seconds" --argjson log_stored "$(stored_bytes wal pieces)" '
    def fixed: (. * 100 | round) as $n | "\($n / 100 | floor).\("0\($n % 100)"[-2:])";
    def seconds: "\(fixed) s";
    def mib: "\(. / 1048576 | round) MiB";
    def per($time): "\(. / 1048576 / $time | round) MiB/s";
    def copying: [.phases[].seconds] | add;
    def faults: .holes_in_conversations + .holes_in_time + .too_new + .invented + .altered + .torn + .gaps
        + .disorder + .dangling + .duplicates + .load_changed + .missing_constraints;
    . as [$before, $latest, $before_judged, $latest_judged, $backup, $workload]
    | ["-", "second before the mistake", "last acknowledged write"],
      ["loss window promised", "none", "\($promised | seconds)"],
      ["loss window measured", ($before_judged, $latest_judged | .loss_window_seconds | seconds)],
      ["writes that must be there", ($before_judged, $latest_judged | .expected)],
      ["  of them missing", ($before_judged, $latest_judged | .lost)],
      ["holes, inventions, disorder", ($before_judged, $latest_judged | faults)],
      ["recovery, until it takes writes", ($before, $latest | copying + .reached.replay_seconds | seconds)],
      (range($before.phases | length) as $i
        | ["  \($before.phases[$i].phase)", ($before, $latest | .phases[$i].seconds | seconds)]),
      ["  replaying the log", ($before, $latest | .reached.replay_seconds | seconds)],
      ["restored", ($before, $latest | "\(.bytes | mib), \(copying as $time | .bytes | per($time))")],
      ["-"],
      ["backup under load", "\($backup.snapshot.bytes | mib) in \($backup | copying | seconds), stored as \($backup.snapshot.stored_bytes | mib)"],
      ["log", "stored as \($log_stored | mib), encrypted"],
      ["writers", "\($workload.acknowledged) acknowledged, \($workload.rate | round) a second, median \($workload.latency_p50_ms | fixed) ms"]
    | @tsv' before.json latest.json before.judged.json latest.judged.json backup.json workload.json |
    while IFS=$'\t' read -r name left right; do
        printf '  %-34s%-28s%s\n' "${name#-}" "$left" "$right"
    done | sed 's/ *$//'
printf '\nThis took %s s. Nothing is left running, and nothing is left behind.\n' "$((SECONDS - begun))"
