"""Restore into an empty directory, from the command to the first answer of the server there."""

from __future__ import annotations

import time
from collections.abc import Callable

from lib import system
from lib.ahead import AheadWatcher
from lib.cluster import DATABASE, Probe
from lib.context import Context
from lib.full import backup
from lib.measure import Sample, measure
from lib.results import Comparison, PartResult, mib
from lib.system import BenchError, Cpu
from lib.tools import BackupTool, Holdfast


def run(context: Context) -> PartResult:
    context.workload.probe()
    for tool in context.restorers:
        if not tool.has_backup:
            context.say(f"restore: a backup with {tool.name} first, not measured")
            backup(context, tool)
    samples: list[Sample] = []
    for turn in range(context.repeat):
        for tool in context.restorers:
            sample = restore(context, tool, context.workload.probe())
            context.say(
                f"restore {turn + 1}/{context.repeat} {tool.name}: wall {sample.wall:.1f} s"
                f" (command {sample.details['command_wall']:.1f} s), CPU {sample.cpu:.1f} s, noise {sample.noise:.0%}"
            )
            samples.append(sample)
    if not context.keep:
        for tool in context.restorers:
            tool.remove()
    return PartResult("restore", rows(context, samples), samples, context.about_workload())


def rows(context: Context, samples: list[Sample]) -> list:
    ours, peer = ([s for s in samples if s.tool == tool.name] for tool in context.restorers)
    name, version = context.pgbackrest.name, context.pgbackrest.version
    pair = Comparison(ours, peer, name, version, context.workload.size_gib, context.at)
    return [
        pair.row("restore.wall", "s", lambda s: s.wall),
        pair.row("restore.cpu", "s", lambda s: s.cpu),
        pair.row("restore.memory", "MiB", lambda s: mib(s.memory_sum)),
    ]


def restore(
    context: Context,
    tool: BackupTool,
    probe: Probe,
    also: Probe | None = None,
    put_older: Callable[[], None] | None = None,
    is_backup_only: bool = False,
) -> Sample:
    """One restore, measured, and what came back compared with what was there.

    `also`: compared off the clock. `put_older`: puts a data directory there first, which the tool goes over.
    `is_backup_only`: without the log since the backup.
    """
    target = context.work / "restored"
    system.remove(target)
    if put_older:
        put_older()
    if put_older:
        command = tool.delta_command(target)
    else:
        command = (tool.restore_backup_command if is_backup_only else tool.restore_command)(target)
    answer = ""
    began = ended = 0.0
    server = None
    ahead = AheadWatcher(tool) if isinstance(tool, Holdfast) else None

    def first_query() -> Cpu:
        nonlocal answer, server, began
        began = time.monotonic()
        server = context.workload.restored(target)
        server.launch()
        answer = server.wait_for(probe.sql, DATABASE)
        return server.cpu() + (ahead.finish() if ahead else Cpu())

    try:
        sample = measure(tool.name, command, tool.log, then=first_query)
        if answer != probe.answer:
            raise BenchError(f"{tool.name} restored something else: {answer!r} instead of {probe.answer!r}")
        # For the record: how much later it takes writes.
        server.wait_until_writable()
        ended = time.monotonic()
        sample.details["writable_after"] = sample.details["command_wall"] + ended - began
        if also and (found := server.query(also.sql, DATABASE)) != also.answer:
            raise BenchError(f"{tool.name} restored something else: {found!r} instead of {also.answer!r}")
    finally:
        if server:
            server.stop()
        if ahead:
            ahead.finish()
            ahead.kill()
        system.remove(target)
    return sample
