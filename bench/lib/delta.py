"""Restore over an older data directory of the same cluster: only what differs has to be written."""

from __future__ import annotations

from lib import changes, measure
from lib.context import Context
from lib.incremental import seed
from lib.live import Live
from lib.measure import Sample
from lib.restore import restore
from lib.results import Comparison, PartResult, Row, mib
from lib.tools import FULL, INCREMENTAL

CASE = "delta_restore"
SHARE = 0.01


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    with Live(context, context.workload.cluster) as live:
        for tool in live.tools:
            live.backup(tool, FULL)
        changes.edits(live.server, seed(0), SHARE)
        changes.appends(live.server, seed(0), SHARE)
        live.settle()
        for tool in live.tools:
            live.backup(tool, INCREMENTAL)
        live.settle()
        probe, messages = live.probe(), live.all_messages()
        target = context.work / "restored"
        # What is gone over: the cluster as it was before the change, which nobody has to restore first.
        older = ["cp", "-a", "--reflink=auto", str(context.workload.cluster), str(target)]
        for turn in range(context.repeat):
            for tool in live.order(turn):
                sample = restore(context, tool, probe, messages, lambda: measure.run(older, live.server.log))
                sample.case = CASE
                context.say(
                    f"delta restore {turn + 1}/{context.repeat} {tool.name}: wall {sample.wall:.1f} s"
                    f" (command {sample.details['command_wall']:.1f} s), CPU {sample.cpu:.1f} s,"
                    f" read {mib(sample.details['bytes_read']):,.0f} MiB, noise {sample.noise:.0%}"
                )
                samples.append(sample)
    return PartResult("delta", rows(context, samples), samples, context.about_workload())


def rows(context: Context, samples: list[Sample]) -> list[Row]:
    peer = context.pgbackrest
    ours, of_peer = ([s for s in samples if s.tool == name] for name in (context.holdfast.name, peer.name))
    pair = Comparison(ours, of_peer, peer.name, peer.version, context.workload.size_gib, context.at)
    return [
        pair.row(f"{CASE}.wall", "s", lambda s: s.wall),
        pair.row(f"{CASE}.cpu", "s", lambda s: s.cpu),
        pair.row(f"{CASE}.bytes_read", "MiB", lambda s: mib(s.details["bytes_read"])),
    ]
