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
# Windows of each, however few turns the others have; the medians of their p99 are what counts.
WINDOWS_MIN = 3
# For a p99 that is more than a handful of commits.
TRANSACTIONS_MIN = 10_000
CASE = "impact"
NONE = "none"
# Between the start of the load and of the backup: what clients use gets into the page cache again.
LEAD_SECONDS = 5
# A server has checkpoints all the time, and a backup that is in no hurry takes its own with them: with and without
# backups the same.
SETTINGS = {"checkpoint_timeout": "30s"}
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
    with Live(context, context.workload.cluster, settings=SETTINGS) as live:
        for tool in live.tools:
            tool.hurries = False
        newest = int(live.server.query("select max(id) from messages", DATABASE))
        context.say("impact: a turn to warm up, not measured")
        turn(context, live, script, newest, None)
        windows = max(WINDOWS_MIN, context.repeat) if context.repeat > 1 else 1
        for number in range(windows):
            # Each is first, second and last in turn.
            of_all: list[BackupTool | None] = [None, *live.tools]
            shift = number % len(of_all)
            for tool in of_all[shift:] + of_all[:shift]:
                sample = turn(context, live, script, newest, tool)
                context.say(
                    f"impact {number + 1}/{windows} {sample.tool}: p99 {sample.details['p99_ms']:.2f} ms,"
                    f" median {sample.details['p50_ms']:.2f} ms of {sample.details['transactions']:,.0f} transactions"
                    f" during {sample.details['backups']:.0f} backups, load {sample.details['load']:.0%} of the machine,"
                    f" noise {sample.noise:.0%}"
                )
                samples.append(sample)
        live.server.query("checkpoint")
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
    """The load for a while, and one full backup after the other meanwhile: what was committed during them counts."""
    live.empty_repository()
    live.settle()
    dropped = system.drop_caches()
    system.wait_for_quiet()
    prefix = context.work / "impact"
    for old in context.work.glob("impact.[0-9]*"):
        system.remove(old)
    options = [
        "-n",
        "-M",
        "prepared",
        "-c",
        str(CLIENTS),
        "-j",
        str(THREADS),
        "-R",
        str(context.impact_rate),
        "-f",
        str(script),
    ]
    options += ["-T", str(LEAD_SECONDS + context.impact_seconds), "-D", f"oldest={max(1, newest - RECENT)}"]
    options += ["-D", f"newest={newest}", "-l", f"--log-prefix={prefix}", DATABASE]
    log = context.work / "log" / "impact.log"
    meter = Meter()
    known = known_cpu(live)
    metered = time.monotonic()
    load = Process(live.server.program("pgbench", *options), log)
    try:
        time.sleep(LEAD_SECONDS)
        began = time.time()
        ended = began + context.impact_seconds
        used = Cpu()
        backups = 0
        while tool and time.time() < ended - 1:
            used += backed_up(live, tool)
            backups += 1
        if not tool:
            time.sleep(max(0.0, ended - time.time()))
        usage = load.wait()
    except BaseException:
        load.kill()
        raise
    latencies, last = read_latencies(prefix.parent, prefix.name, began, ended)
    wall = time.monotonic() - metered
    sample = Sample(tool.name if tool else NONE, wall, used.user, used.system, case=CASE, caches_dropped=dropped)
    server = (known_cpu(live) - known).total
    meter.finish(sample, running=server)
    cuts = quantiles(latencies, n=1000)
    sample.details = {
        "p50_ms": cuts[499],
        "p99_ms": cuts[989],
        "p999_ms": cuts[998],
        "transactions": len(latencies),
        "counted_seconds": last - began,
        "backups": backups,
        # The load itself, and what follows the log; without the backups.
        "load": (server + usage.ru_utime + usage.ru_stime) / (wall * system.CPUS),
    }
    if len(latencies) < TRANSACTIONS_MIN:
        context.say(
            f"impact: {len(latencies):,} transactions are few for a p99: a higher --impact-rate, or more --impact-seconds"
        )
    return sample


def backed_up(live: Live, tool: BackupTool) -> Cpu:
    """One backup; what it used."""
    backup = Process(tool.backup_command(live.server, FULL), tool.log)
    try:
        usage = backup.wait()
    except BaseException:
        backup.kill()
        raise
    return Cpu(usage.ru_utime, usage.ru_stime)


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
