"""Replay of a GiB of log: from Holdfast's repository, beside the same log from a directory of plain files, and from the
same repository when each request to it takes as long as to a distant store."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from lib import changes, measure, system
from lib.ahead import AheadWatcher
from lib.cluster import DATABASE, Probe
from lib.context import Context
from lib.live import Live
from lib.measure import Meter, Sample
from lib.postgres import Server
from lib.results import Comparison, PartResult, Row
from lib.system import BenchError, Cpu
from lib.tools import FULL, Holdfast

LOG_BYTES = 1 << 30
# Edited, and added, in each step.
STEP_MESSAGES = 5000
PEER = "cp"
# What each request to the repository takes more.
LATENCY_MS = 20
DISTANT = f"holdfast, {LATENCY_MS} ms a request"
SHIM = Path(__file__).with_name("slow.c")
CASE = "replay1g"


def run(context: Context) -> PartResult:
    plain = system.make_directory(context.work / "plain-log")
    shim = compile_shim(context)
    settings = {
        "archive_mode": "on",
        "archive_command": f"cp %p {plain}/%f",
        # No checkpoint: pages are logged whole once, and then what changed in them.
        "max_wal_size": "8GB",
    }
    samples: list[Sample] = []
    with Live(context, context.workload.cluster, with_peer=False, settings=settings) as live:
        live.backup(live.holdfast, FULL)
        live.settle()
        from_position = live.log_position()
        share = STEP_MESSAGES / int(live.server.query("select max(id) from messages", DATABASE))
        step = 0
        while live.log_position() - from_position < LOG_BYTES:
            step += 1
            seed = round(step * 0.011 % 1, 3)
            changes.edits(live.server, seed, share)
            changes.appends(live.server, seed, share)
        log_bytes = live.log_position() - from_position
        live.settle()
        messages = live.all_messages()
        live.stop_receiver()
        live.settle()
        live.server.stop()
        context.say(f"replay: {log_bytes / (1 << 30):.2f} GiB of log made in {step} steps")
        for turn in range(context.repeat):
            # What comes after the peer is slower, whoever that is: the two that are compared closest take turns at it.
            ours = [live.holdfast.name, DISTANT]
            for name in [*(ours[::-1] if turn % 2 else ours), PEER]:
                sample = replay(context, live.holdfast, name, plain, shim, messages)
                sample.details["log_bytes"] = log_bytes
                context.say(
                    f"replay {turn + 1}/{context.repeat} {name}: wall {sample.wall:.1f} s"
                    f" (redo {sample.details['redo_seconds']:.1f} s), CPU {sample.cpu:.1f} s, noise {sample.noise:.0%}"
                )
                samples.append(sample)
    if not context.keep:
        system.remove(plain)
    return PartResult("replay", rows(context, samples), samples, context.about_workload())


def compile_shim(context: Context) -> Path:
    """What makes the repository slow, for programs that are started with it."""
    shim = context.work / "slow.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(SHIM), "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"a C compiler is needed to make requests slow: {error}") from error
    shim.chmod(0o755)
    return shim


def rows(context: Context, samples: list[Sample]) -> list[Row]:
    ours, peer, distant = ([s for s in samples if s.tool == name] for name in (context.holdfast.name, PEER, DISTANT))
    pair = Comparison(ours, peer, PEER, "", context.workload.size_gib, context.at)
    latency = Comparison(distant, ours, f"{context.holdfast.name} without latency", "", context.workload.size_gib, context.at)
    return [
        pair.row(f"{CASE}.wall", "s", lambda s: s.wall),
        pair.row(f"{CASE}.cpu", "s", lambda s: s.cpu),
        latency.row(f"{CASE}.latency.wall", "s", lambda s: s.wall),
        # Without the start and the end of recovery.
        latency.row(f"{CASE}.latency.redo", "s", lambda s: s.details["redo_seconds"]),
    ]


def replay(context: Context, holdfast: Holdfast, name: str, plain: Path, shim: Path, messages: Probe) -> Sample:
    """The base is laid down by Holdfast each time, off the clock. The clock runs from start to the first write."""
    target = context.work / "restored"
    log = context.work / "log" / "replay.log"
    system.remove(target)
    measure.run(holdfast.restore_command(target), holdfast.log)
    # What is given here comes before what the restore wrote.
    settings = {"restore_command": f"cp {plain}/%f %p"} if name == PEER else None
    slow = {"LD_PRELOAD": str(shim), "SLOW_DIR": str(holdfast.repository), "SLOW_MS": str(LATENCY_MS)}
    server = Server(target, context.socket, context.port + 1, log, settings)
    server.abandon()
    dropped = system.drop_caches()
    system.wait_for_quiet()
    meter = Meter()
    said_before = log.stat().st_size if log.exists() else 0
    ahead = AheadWatcher(holdfast)
    began = time.monotonic()
    try:
        # The server keeps it, for what it runs.
        server.launch(slow if name == DISTANT else None)
        server.wait_until_writable()
        wall = time.monotonic() - began
        used = server.cpu() + ahead.finish()
        sample = Sample(name, wall, used.user, used.system, case=CASE, caches_dropped=dropped)
        meter.finish(sample, running=used.total)
        if (found := server.query(messages.sql, DATABASE)) != messages.answer:
            raise BenchError(f"{name}: replay ended with something else: {found!r} instead of {messages.answer!r}")
    finally:
        server.stop()
        ahead.finish()
        ahead.kill()
        system.remove(target)
    with log.open(errors="replace") as lines:
        lines.seek(said_before)
        redo = re.search(r"redo done at .* elapsed: ([\d.]+) s", lines.read())
    sample.details["redo_seconds"] = float(redo.group(1)) if redo else 0.0
    return sample
