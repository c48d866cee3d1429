"""Streaming the log: what a receiver costs the fastest pgbench that this machine can make."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from lib import postgres, system
from lib.context import Context
from lib.measure import Meter, Process, Sample
from lib.postgres import Server
from lib.results import Comparison, PartResult, mib
from lib.system import BenchError, Cpu
from lib.tools import Holdfast, HoldfastReceiver, PgReceiveWal, Receiver

SCALE = 50
CLIENTS = 8
THREADS = 2
CATCH_UP_SECONDS_MAX = 60

SETTINGS = {
    "shared_buffers": "1GB",
    # No checkpoint while it runs, and files of the log that are there already.
    "max_wal_size": "16GB",
    "min_wal_size": "4GB",
    # The clients do not wait for the disk, so the processors are the limit: that makes the most log, and every cycle
    # that a receiver takes is missing elsewhere.
    "synchronous_commit": "off",
}


def run(context: Context) -> PartResult:
    cluster = make_cluster(context)
    ours = HoldfastReceiver(Holdfast(context.work, context.holdfast_program, "holdfast-wal"))
    peer = PgReceiveWal(context.work, postgres.programs_for(cluster))
    receivers: list[Receiver | None] = [None, peer, ours]
    samples: list[Sample] = []
    log = context.work / "log" / "pgbench-server.log"
    with Server(cluster, context.socket, context.port, log, SETTINGS) as server:
        context.say("wal: a turn to warm up, not measured")
        turn(context, server, None)
        for number in range(context.repeat):
            # Each is first once, as the tables grow.
            shift = number % len(receivers)
            for receiver in receivers[shift:] + receivers[:shift]:
                sample = turn(context, server, receiver)
                context.say(
                    f"wal {number + 1}/{context.repeat} {sample.tool}: {sample.details['tps']:,.0f} transactions/s,"
                    f" {sample.details['wal_mib_per_second']:.0f} MiB/s of log,"
                    f" CPU {sample.user + sample.system:.1f} s, behind {sample.details.get('behind_mib', 0):.1f} MiB,"
                    f" noise {sample.noise:.0%}"
                )
                samples.append(sample)
        size_gib = round(int(server.query("select pg_database_size('postgres')")) / (1 << 30), 2)
    about = context.about(
        peer.programs,
        f"pgbench -N -M prepared -c {CLIENTS} -j {THREADS} -T {context.wal_seconds}, scale {SCALE}, asynchronous commit",
        {peer.name: peer.version},
    )
    if not context.keep:
        system.remove(cluster.parent)
    return PartResult("wal", rows(context, samples, peer, size_gib), samples, about)


def rows(context: Context, samples: list[Sample], receiver: PgReceiveWal, size_gib: float) -> list:
    ours, peer, none = ([s for s in samples if s.tool == name] for name in (context.holdfast.name, receiver.name, "none"))
    pair = Comparison(ours, peer, receiver.name, receiver.version, size_gib, context.at)
    alone = Comparison(ours, none, "none", "", size_gib, context.at)
    return [
        pair.row("wal.pgbench_tps", "transactions/s", lambda s: s.details["tps"]),
        pair.row("wal.behind", "MiB", lambda s: s.details["behind_mib"]),
        pair.row("wal.cpu", "s/GiB of log", lambda s: (s.user + s.system) / (s.details["wal_mib"] / 1024)),
        pair.row("wal.memory", "MiB", lambda s: mib(s.memory_sum)),
        alone.row("wal.pgbench_tps_alone", "transactions/s", lambda s: s.details["tps"]),
    ]


def make_cluster(context: Context) -> Path:
    """pgbench's own tables in a cluster of their own; made anew, as they grow with use."""
    cluster = context.work / "pgbench" / "data"
    log = context.work / "log" / "pgbench.log"
    system.remove(cluster.parent)
    postgres.initialise(cluster, log)
    with Server(cluster, context.socket, context.port, log, SETTINGS) as server:
        process = Process(server.program("pgbench", "-i", "-q", "-s", str(SCALE), "postgres"), log)
        process.wait()
    return cluster


def turn(context: Context, server: Server, receiver: Receiver | None) -> Sample:
    """pgbench for a while, with a receiver or without."""
    server.query("truncate pgbench_history")
    server.query("vacuum pgbench_accounts")
    server.query("checkpoint")
    os.sync()
    process = None
    try:
        if receiver:
            process = receiver.start(server)
            receiver.wait_until_streaming(server, process)
        system.wait_for_quiet()
        sample = _pgbench(context, server, receiver, process)
    finally:
        if process:
            process.kill()
        if receiver:
            receiver.drop_slot(server)
            receiver.remove()
    return sample


def _pgbench(context: Context, server: Server, receiver: Receiver | None, process: Process | None) -> Sample:
    log = context.work / "log" / "pgbench.log"
    run_options = ["-n", "-N", "-M", "prepared", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(context.wal_seconds)]
    from_position = server.query("select pg_current_wal_insert_lsn()")
    meter = Meter()
    server_before = server.cpu()
    receiver_before = system.tree_cpu(process.pid) if process else Cpu()
    began = time.monotonic()
    size_before = log.stat().st_size
    load = Process(server.program("pgbench", *run_options, "postgres"), log)
    try:
        load.wait()
    except BaseException:
        load.kill()
        raise
    wall = time.monotonic() - began
    behind = _behind(server) if process else None
    server_cpu = (server.cpu() - server_before).total
    used = system.tree_cpu(process.pid) - receiver_before if process else Cpu()
    sample = Sample(receiver.name if receiver else "none", wall, used.user, used.system, server_cpu)
    meter.finish(sample, running=server_cpu + used.total)

    said = log.read_text(errors="replace")[size_before:]
    tps = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    if not tps:
        raise BenchError(f"pgbench said no figure; see {log}")
    wal = int(server.query(f"select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{from_position}')::bigint"))
    sample.details = {"tps": float(tps.group(1)), "wal_mib": mib(wal), "wal_mib_per_second": mib(wal) / wall}
    if receiver and process:
        sample.memory_sum = process.memory_sum
        sample.details |= {"behind_mib": mib(behind or 0), "caught_up_after": _catch_up(server)}
        # With what it does at its end: for the record.
        sample.details["cpu_until_end"] = (receiver.stop(process) - receiver_before).total
        sample.memory_max_process = sample.memory_sum
    return sample


def _behind(server: Server) -> int:
    """How much log the receiver has not yet said to have written."""
    return int(
        server.query("select pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(write_lsn, '0/0')) from pg_stat_replication")
        or -1
    )


def _catch_up(server: Server) -> float:
    """Seconds until all is written that was there at the end."""
    began = time.monotonic()
    end = server.query("select pg_current_wal_lsn()")
    while server.query(f"select coalesce(write_lsn >= '{end}', false) from pg_stat_replication") != "t":
        if time.monotonic() - began > CATCH_UP_SECONDS_MAX:
            raise BenchError("the receiver does not catch up with the log")
        time.sleep(0.05)
    return time.monotonic() - began
