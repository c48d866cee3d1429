"""What clients notice of a full backup: the latency of commits while one is made, beside that without."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median, quantiles

from lib import system
from lib.cluster import DATABASE
from lib.context import Context
from lib.live import Live
from lib.measure import Meter, Process, Sample
from lib.results import Comparison, PartResult, Row
from lib.system import BenchError, Cpu
from lib.tools import FULL, BackupTool

CLIENTS = 8
THREADS = 1
# Of all clients together: what the server can do easily, so that waiting is what is measured, not queueing.
RATE = 200
CASE = "impact"
NONE = "none"
# Between the start of the load and of the backup: what clients use gets into the page cache again.
LEAD_SECONDS = 5
# What clients edit is among so many of the newest messages.
RECENT = 100_000

# One edit, as a client makes it: the commit waits for the disk.
SCRIPT = """\
\\set id random(:oldest, :newest)
begin;
select body from messages where id = :id;
update messages set edited_at = now() where id = :id;
commit;
"""


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    script = context.work / "impact.sql"
    system.write_file(script, SCRIPT)
    with Live(context, context.workload.cluster) as live:
        newest = int(live.server.query("select max(id) from messages", DATABASE))
        context.say("impact: a turn to warm up, not measured")
        turn(context, live, script, newest, None)
        for number in range(context.repeat):
            order: list[BackupTool | None] = [None, *live.order(number)]
            for tool in order:
                sample = turn(context, live, script, newest, tool)
                context.say(
                    f"impact {number + 1}/{context.repeat} {sample.tool}: p99 {sample.details['p99_ms']:.2f} ms,"
                    f" median {sample.details['p50_ms']:.2f} ms of {sample.details['transactions']:,.0f} transactions"
                    f" in {sample.details['counted_seconds']:.1f} s, noise {sample.noise:.0%}"
                )
                samples.append(sample)
    for left in context.work.glob("impact.*"):
        system.remove(left)
    return PartResult("impact", rows(context, samples), samples, context.about_workload())


def rows(context: Context, samples: list[Sample]) -> list[Row]:
    none, ours, peer = (
        [s for s in samples if s.tool == name] for name in (NONE, context.holdfast.name, context.pgbackrest.name)
    )
    name, version, size = context.pgbackrest.name, context.pgbackrest.version, context.workload.size_gib
    pair = Comparison(ours, peer, name, version, size, context.at)

    def to_none(figure: str) -> Row:
        without = median(sample.details[f"{figure}_ms"] for sample in none)
        return pair.row(f"{CASE}.{figure}", "times", lambda s: s.details[f"{figure}_ms"] / without)

    return [
        to_none("p99"),
        to_none("p50"),
        pair.row(f"{CASE}.p99_ms", "ms", lambda s: s.details["p99_ms"]),
        Comparison(ours, none, NONE, "", size, context.at).row(f"{CASE}.p99_ms_alone", "ms", lambda s: s.details["p99_ms"]),
    ]


def turn(context: Context, live: Live, script: Path, newest: int, tool: BackupTool | None) -> Sample:
    """The load for a while, and a full backup meanwhile; only what was committed during the backup counts."""
    live.settle()
    dropped = system.drop_caches()
    system.wait_for_quiet()
    prefix = context.work / "impact"
    for old in context.work.glob("impact.[0-9]*"):
        system.remove(old)
    options = ["-n", "-M", "prepared", "-c", str(CLIENTS), "-j", str(THREADS), "-R", str(RATE), "-f", str(script)]
    options += ["-T", str(context.wal_seconds), "-D", f"oldest={max(1, newest - RECENT)}"]
    options += ["-D", f"newest={newest}", "-l", f"--log-prefix={prefix}", DATABASE]
    log = context.work / "log" / "impact.log"
    meter = Meter()
    known = known_cpu(live)
    metered = time.monotonic()
    load = Process(live.server.program("pgbench", *options), log)
    try:
        time.sleep(LEAD_SECONDS)
        began = time.time()
        backup_wall = 0.0
        if tool:
            backup = Process(tool.backup_command(live.server, FULL), tool.log)
            try:
                usage = backup.wait()
            except BaseException:
                backup.kill()
                raise
            backup_wall = time.time() - began
        ended = began + backup_wall if tool else float("inf")
        load.wait()
    except BaseException:
        load.kill()
        raise
    latencies, last = read_latencies(prefix.parent, prefix.name, began, ended)
    wall = time.monotonic() - metered
    sample = Sample(tool.name if tool else NONE, wall, 0.0, 0.0, case=CASE, caches_dropped=dropped)
    if tool:
        sample.user, sample.system = usage.ru_utime, usage.ru_stime
    meter.finish(sample, running=(known_cpu(live) - known).total)
    cuts = quantiles(latencies, n=1000)
    sample.details = {
        "p50_ms": cuts[499],
        "p99_ms": cuts[989],
        "p999_ms": cuts[998],
        "transactions": len(latencies),
        "counted_seconds": last - began,
        "backup_wall": backup_wall,
    }
    return sample


def known_cpu(live: Live) -> Cpu:
    return live.server.cpu() + live.log_cpu(live.holdfast)


def read_latencies(directory: Path, prefix: str, began: float, ended: float) -> tuple[list[float], float]:
    """Milliseconds of what was committed between two moments, waiting for its turn included, and the last moment."""
    found = []
    last = began
    # Client, transaction, microseconds, script, and when it ended: seconds and microseconds; then the lag.
    for path in directory.glob(f"{prefix}.[0-9]*"):
        for line in path.read_text().splitlines():
            fields = line.split()
            at = int(fields[4]) + int(fields[5]) / 1e6
            if began <= at <= ended and fields[2].isdigit():
                found.append(int(fields[2]) / 1000)
                last = max(last, at)
    if len(found) < 100:
        raise BenchError(f"only {len(found)} transactions during the backup: a larger workload is needed")
    return found, last
