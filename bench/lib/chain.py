"""Restore from the end of a chain of incrementals, beside that of a full backup of the same state by Holdfast itself,
and beside that of the same chain by the peers."""

from __future__ import annotations

from lib import changes
from lib.context import Context
from lib.live import Live
from lib.measure import Sample
from lib.restore import restore
from lib.results import Comparison, PartResult, Row, mib
from lib.system import BenchError
from lib.tools import FULL, INCREMENTAL, BackupTool, Holdfast

EDITED = 0.001
APPENDED = 0.001
PEER = "holdfast full"


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    # Barman's would be fifty copies of nearly everything: a file that has changed is copied whole.
    more = context.pg_incremental(context.workload.cluster)
    with Live(context, context.workload.cluster, more=more) as live:
        for tool in live.tools:
            live.backup(tool, FULL)
        for length in range(1, context.chain_lengths[-1] + 1):
            seed = round(length * 0.013, 3)
            changes.edits(live.server, seed, EDITED)
            changes.appends(live.server, seed, APPENDED)
            live.settle()
            for tool in live.tools:
                live.backup(tool, INCREMENTAL)
            if length in context.chain_lengths:
                samples += restores(context, live, length)
        for tool in live.tools:
            if (kinds := tool.kinds()) != [FULL] + [INCREMENTAL] * context.chain_lengths[-1]:
                raise BenchError(f"the chain of {tool.name} is not one of incrementals: {kinds}")
    peers = [(tool.name, tool.version) for tool in live.tools[1:]]
    about = {**context.about_workload(), **{tool.name: tool.version for tool in more}}
    return PartResult("chain", rows(context, samples, peers), samples, about)


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
    tools: list[BackupTool] = [*live.tools, fresh]
    samples = []
    for turn in range(context.repeat):
        for tool in tools[::-1] if turn % 2 else tools:
            # The chains have log of a later time than a full backup that is newer has.
            sample = restore(context, tool, probe, messages, is_backup_only=True)
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


def rows(context: Context, samples: list[Sample], peers: list[tuple[str, str]]) -> list[Row]:
    found = []
    for length in context.chain_lengths:
        by_tool = {s.tool: [t for t in samples if t.tool == s.tool and t.case == f"chain{length}"] for s in samples}
        for name, version in [(PEER, context.holdfast.version), *peers]:
            case = f"chain{length}" + ("" if name == PEER else f"_{name.removeprefix('pg_')}")
            ours, peer = by_tool[context.holdfast.name], by_tool[name]
            pair = Comparison(ours, peer, name, version, context.workload.size_gib, context.at)
            found += [
                pair.row(f"{case}.restore.wall", "s", lambda s: s.wall),
                pair.row(f"{case}.restore.cpu", "s", lambda s: s.cpu),
                pair.row(f"{case}.repository", "MiB", lambda s: mib(s.details["repository_bytes"])),
            ]
    return found
