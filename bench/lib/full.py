"""Full backup: ours, pgBackRest's and pg_basebackup's of one cluster, and its bytes through zstd, in turn."""

from __future__ import annotations

from lib.context import Context
from lib.measure import Sample, measure
from lib.results import Comparison, PartResult, mib
from lib.tools import BackupTool


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    for turn in range(context.repeat):
        is_last = turn == context.repeat - 1
        for tool in context.tools:
            sample = backup(context, tool)
            context.say(
                f"full {turn + 1}/{context.repeat} {tool.name}: wall {sample.wall:.1f} s, CPU {sample.cpu:.1f} s,"
                f" {mib(sample.details['repository_bytes']):,.0f} MiB, noise {sample.noise:.0%}"
            )
            samples.append(sample)
            if not (context.keep or (is_last and "restore" in context.parts and tool in context.restorers)):
                tool.remove()
    return PartResult("full", rows(context, samples), samples, context.about_workload())


def rows(context: Context, samples: list[Sample]) -> list:
    by_tool = {tool.name: [s for s in samples if s.tool == tool.name] for tool in context.tools}
    ours = by_tool[context.holdfast.name]
    found = []
    for name, peer in (("full", context.pgbackrest), ("full_basebackup", context.pg_basebackup)):
        pair = Comparison(ours, by_tool[peer.name], peer.name, peer.version, context.workload.size_gib, context.at)
        found += [
            pair.row(f"{name}.wall", "s", lambda s: s.wall),
            pair.row(f"{name}.cpu", "s", lambda s: s.cpu),
            pair.row(f"{name}.repository", "MiB", lambda s: mib(s.details["repository_bytes"])),
            pair.row(f"{name}.memory", "MiB", lambda s: mib(s.memory_sum)),
        ]
    plain = context.plain_zstd
    pair = Comparison(ours, by_tool[plain.name], plain.name, plain.version, context.workload.size_gib, context.at)
    found += [
        pair.row("codec.cpu", "s", lambda s: s.user + s.system),
        pair.row("codec.repository", "MiB", lambda s: mib(s.details["repository_bytes"])),
    ]
    return found


def backup(context: Context, tool: BackupTool) -> Sample:
    """One backup into an empty repository, measured. The repository stays."""
    with context.workload.server(tool.server_settings) as server:
        tool.prepare(server)
        sample = measure(tool.name, tool.backup_command(server), tool.log, server.cpu)
    sample.details["repository_bytes"] = tool.stored_bytes()
    tool.has_backup = True
    return sample
