"""Incremental and differential backups of the same changes: ours, pgBackRest's and others', in turn."""

from __future__ import annotations

from collections.abc import Callable

from lib import changes
from lib.context import Context
from lib.live import Live, told
from lib.measure import Sample
from lib.postgres import Server
from lib.results import Comparison, PartResult, Row, mib
from lib.tools import DIFFERENTIAL, FULL, INCREMENTAL, BackupTool

SHARE = 0.01

CHANGES: dict[str, Callable[[Server, float], int]] = {
    "incremental_pages_01": lambda server, seed: changes.pages(server, seed, share=SHARE / 10),
    "incremental_pages": lambda server, seed: changes.pages(server, seed, share=SHARE),
    "incremental_pages_10": lambda server, seed: changes.pages(server, seed, share=SHARE * 10),
    "incremental_edits": lambda server, seed: changes.edits(server, seed, SHARE),
    "incremental_append": lambda server, seed: changes.appends(server, seed, SHARE),
}
WHOLE = "incremental_full"
DIFFERENCE = "differential"


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    more = [*context.pg_incremental(context.workload.cluster), *context.barman(context.workload.cluster)]
    for turn in range(context.repeat):
        samples += one_turn(context, turn, more)
    found = []
    size = context.workload.size_gib
    for case in (WHOLE, *CHANGES, DIFFERENCE):
        found += rows(context, case, samples, size)
        if case in CHANGES:
            found.append(
                comparison(context, case, samples, size, context.pgbackrest).row(
                    f"{case}.log_cpu", "s", lambda s: s.details["log_cpu"]
                )
            )
        for tool in more:
            found += rows_beside(context, case, samples, size, tool)
    about = context.about_workload()
    return PartResult("incremental", found, samples, {**about, **{tool.name: tool.version for tool in more}})


def one_turn(context: Context, turn: int, more: list[BackupTool]) -> list[Sample]:
    """From the same state as every turn: a full backup, the changes with an incremental each, a differential."""
    samples = []

    def measured(live: Live, tool: BackupTool, kind: str, case: str) -> Sample:
        sample = live.measured(tool, kind, case)
        context.say(f"{case} {turn + 1}/{context.repeat} {told(sample)}")
        samples.append(sample)
        return sample

    with Live(context, context.workload.cluster, more=more) as live:
        for tool in live.order(turn):
            measured(live, tool, FULL, WHOLE)
        for case, change in CHANGES.items():
            log_details = changed(live, change, seed(turn))
            for tool in live.order(turn):
                measured(live, tool, INCREMENTAL, case).details |= log_details[tool.name]
        for tool in live.order(turn):
            if DIFFERENTIAL in tool.kinds_made:
                measured(live, tool, DIFFERENTIAL, DIFFERENCE)
    return samples


def seed(turn: int) -> float:
    return round(0.1 + turn * 0.07 % 0.8, 3)


def changed(live: Live, change: Callable[[Server, float], int], seed: float) -> dict[str, dict[str, float]]:
    """Makes a change and waits until all of its log is in the repositories; what that was, for each tool."""
    live.settle()
    position = live.log_position()
    used = {tool.name: live.log_cpu(tool) for tool in live.tools}
    stored = {tool.name: tool.stored_bytes() for tool in live.tools}
    count = change(live.server, seed)
    live.settle()
    log_mib = mib(live.log_position() - position)
    return {
        tool.name: {
            "changed": count,
            "log_mib": log_mib,
            "log_cpu": (live.log_cpu(tool) - used[tool.name]).total,
            "log_stored_bytes": tool.stored_bytes() - stored[tool.name],
        }
        for tool in live.tools
    }


def comparison(context: Context, case: str, samples: list[Sample], size_gib: float, peer: BackupTool) -> Comparison:
    ours, of_peer = (
        [s for s in samples if s.case == case and s.tool == name] for name in (context.holdfast.name, peer.name)
    )
    return Comparison(ours, of_peer, peer.name, peer.version, size_gib, context.at)


def rows(context: Context, case: str, samples: list[Sample], size_gib: float) -> list[Row]:
    """Beside pgBackRest."""
    return figures(comparison(context, case, samples, size_gib, context.pgbackrest), case)


def rows_beside(context: Context, case: str, samples: list[Sample], size_gib: float, tool: BackupTool) -> list[Row]:
    """The same beside another peer, whose name is in that of the figures."""
    pair = comparison(context, case, samples, size_gib, tool)
    if not pair.peer:
        return []
    name = f"{case}_{tool.name.removeprefix('pg_')}"
    found = figures(pair, name)
    if "packed_bytes" in pair.peer[0].details:
        found.append(pair.row(f"{name}.repository_zstd", "MiB", packed))
    return found


def packed(sample: Sample) -> float:
    return mib(sample.details.get("packed_bytes", sample.details["repository_bytes"]))


def figures(pair: Comparison, name: str) -> list[Row]:
    return [
        pair.row(f"{name}.wall", "s", lambda s: s.wall),
        pair.row(f"{name}.cpu", "s", lambda s: s.cpu),
        pair.row(f"{name}.bytes_read", "MiB", lambda s: mib(s.details["bytes_read"])),
        pair.row(f"{name}.repository", "MiB", lambda s: mib(s.details["repository_bytes"])),
    ]
