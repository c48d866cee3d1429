"""Incremental and differential backups: ours and pgBackRest's of the same changes, in turn."""

from __future__ import annotations

from collections.abc import Callable

from lib import changes
from lib.context import Context
from lib.live import Live, told
from lib.measure import Sample
from lib.postgres import Server
from lib.results import Comparison, PartResult, Row, mib
from lib.tools import DIFFERENTIAL, FULL, INCREMENTAL

SHARE = 0.01

CHANGES: dict[str, Callable[[Server, float], int]] = {
    "incremental_pages": lambda server, seed: changes.pages(server, seed, share=SHARE),
    "incremental_edits": lambda server, seed: changes.edits(server, seed, SHARE),
    "incremental_append": lambda server, seed: changes.appends(server, seed, SHARE),
}


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    for turn in range(context.repeat):
        samples += one_turn(context, turn)
    found = []
    for case in (*CHANGES, "differential"):
        found += rows(context, case, samples, context.workload.size_gib)
        if case in CHANGES:
            found.append(comparison(context, case, samples, context.workload.size_gib).row(
                f"{case}.log_cpu", "s", lambda s: s.details["log_cpu"]
            ))  # fmt: skip
    return PartResult("incremental", found, samples, context.about_workload())


def one_turn(context: Context, turn: int) -> list[Sample]:
    """From the same state as every turn: a full backup, three changes with an incremental each, a differential."""
    samples = []
    with Live(context, context.workload.cluster) as live:
        for tool in live.tools:
            live.backup(tool, FULL)
        for case, change in CHANGES.items():
            log_details = changed(live, change, seed(turn))
            for tool in live.order(turn):
                sample = live.measured(tool, INCREMENTAL, case)
                sample.details |= log_details[tool.name]
                context.say(f"{case} {turn + 1}/{context.repeat} {told(sample)}")
                samples.append(sample)
        for tool in live.order(turn):
            sample = live.measured(tool, DIFFERENTIAL, "differential")
            context.say(f"differential {turn + 1}/{context.repeat} {told(sample)}")
            samples.append(sample)
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


def comparison(context: Context, case: str, samples: list[Sample], size_gib: float) -> Comparison:
    ours, peer = (
        [s for s in samples if s.case == case and s.tool == name]
        for name in (context.holdfast.name, context.pgbackrest.name)
    )
    return Comparison(ours, peer, context.pgbackrest.name, context.pgbackrest.version, size_gib, context.at)


def rows(context: Context, case: str, samples: list[Sample], size_gib: float) -> list[Row]:
    pair = comparison(context, case, samples, size_gib)
    return [
        pair.row(f"{case}.wall", "s", lambda s: s.wall),
        pair.row(f"{case}.cpu", "s", lambda s: s.cpu),
        pair.row(f"{case}.bytes_read", "MiB", lambda s: mib(s.details["bytes_read"])),
        pair.row(f"{case}.repository", "MiB", lambda s: mib(s.details["repository_bytes"])),
    ]
