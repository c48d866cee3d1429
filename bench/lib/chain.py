"""Restore from the end of a chain of incrementals, beside that of a full backup of the same state by Holdfast itself."""

from __future__ import annotations

from lib import changes
from lib.context import Context
from lib.live import Live
from lib.measure import Sample
from lib.restore import restore
from lib.results import Comparison, PartResult, Row, mib
from lib.system import BenchError
from lib.tools import FULL, INCREMENTAL, BackupTool, Holdfast

# After so many incrementals there is a restore.
LENGTHS = (1, 10, 50)
EDITED = 0.001
APPENDED = 0.001
PEER = "holdfast full"


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    with Live(context, context.workload.cluster, with_peer=False) as live:
        live.backup(live.holdfast, FULL)
        for length in range(1, LENGTHS[-1] + 1):
            seed = round(length * 0.013, 3)
            changes.edits(live.server, seed, EDITED)
            changes.appends(live.server, seed, APPENDED)
            live.backup(live.holdfast, INCREMENTAL)
            if length in LENGTHS:
                samples += restores(context, live, length)
        if (kinds := live.holdfast.kinds()) != [FULL] + [INCREMENTAL] * LENGTHS[-1]:
            raise BenchError(f"the chain is not one of incrementals: {kinds}")
    return PartResult("chain", rows(context, samples), samples, context.about_workload())


def restores(context: Context, live: Live, length: int) -> list[Sample]:
    """Of the chain as it is now, and of a full backup of the same state in a repository of its own."""
    # A slot that nobody uses: else it would wait for the receiver, which writes to the other repository.
    fresh = Holdfast(context.work, context.holdfast_program, "holdfast-fresh", slot="holdfast_fresh")
    fresh.name = PEER
    fresh.prepare(live.server)
    live.settle()
    live.backup(fresh, FULL)
    live.settle()
    probe, messages = live.probe(), live.all_messages()
    tools: list[BackupTool] = [live.holdfast, fresh]
    samples = []
    for turn in range(context.repeat):
        for tool in tools[::-1] if turn % 2 else tools:
            sample = restore(context, tool, probe, messages)
            sample.case = f"chain{length}"
            sample.details["repository_bytes"] = tool.stored_bytes()
            context.say(
                f"chain of {length}, {turn + 1}/{context.repeat} {tool.name}: wall {sample.wall:.1f} s"
                f" (command {sample.details['command_wall']:.1f} s), CPU {sample.cpu:.1f} s,"
                f" repository {mib(sample.details['repository_bytes']):,.0f} MiB, noise {sample.noise:.0%}"
            )
            samples.append(sample)
    fresh.remove()
    return samples


def rows(context: Context, samples: list[Sample]) -> list[Row]:
    found = []
    for length in LENGTHS:
        ours, peer = (
            [s for s in samples if s.case == f"chain{length}" and s.tool == name]
            for name in (context.holdfast.name, PEER)
        )
        pair = Comparison(ours, peer, PEER, context.holdfast.version, context.workload.size_gib, context.at)
        found += [
            pair.row(f"chain{length}.restore.wall", "s", lambda s: s.wall),
            pair.row(f"chain{length}.restore.cpu", "s", lambda s: s.cpu),
        ]
    return found
