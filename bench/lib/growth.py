"""The same change in databases of different sizes: what an incremental costs must follow the change, not the size."""

from __future__ import annotations

from pathlib import Path

from lib import changes, cluster, postgres, system
from lib.context import Context
from lib.incremental import changed, rows, seed
from lib.live import Live, told
from lib.measure import Sample
from lib.plot import Panel, plot
from lib.results import PartResult, Row
from lib.tools import FULL, INCREMENTAL

CHANGED_MIB = 64
PICTURE = "growth.svg"


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    found: list[Row] = []
    made: Path | None = None
    for size in context.growth_sizes:
        made = cluster.make(context.lab_program, size, context.work, context.socket, context.port)
        case = f"incremental_growth_{size:g}"
        for turn in range(context.repeat):
            samples += one_turn(context, made, case, turn)
        size_gib = round(system.apparent_bytes(made) / (1 << 30), 2)
        found += rows(context, case, samples, size_gib)
    if not made:
        return PartResult("growth", [], [], {})
    sizes = ", ".join(f"{size:g}" for size in context.growth_sizes)
    about = context.about(
        postgres.programs_for(made),
        f"made by the lab, {sizes} GiB; {CHANGED_MIB} MiB of pages changed in each",
        {context.pgbackrest.name: context.pgbackrest.version},
    )
    return PartResult("growth", found, samples, about, {PICTURE: picture(found)})


def one_turn(context: Context, source: Path, case: str, turn: int) -> list[Sample]:
    samples = []
    pages = CHANGED_MIB * system.MIB // changes.PAGE_BYTES
    with Live(context, source) as live:
        for tool in live.tools:
            live.backup(tool, FULL)
        log_details = changed(live, lambda server, seed: changes.pages(server, seed, count=pages), seed(turn))
        for tool in live.order(turn):
            sample = live.measured(tool, INCREMENTAL, case)
            sample.details |= log_details[tool.name]
            context.say(f"{case} {turn + 1}/{context.repeat} {told(sample)}")
            samples.append(sample)
    return samples


def picture(found: list[Row]) -> str:
    panels = []
    for figure, title in (("wall", "seconds"), ("cpu", "CPU seconds"), ("bytes_read", "MiB read")):
        of_figure = sorted((row for row in found if row.name.endswith(f".{figure}")), key=lambda row: row.size_gib)
        lines = {
            "Holdfast": [(row.size_gib, row.ours) for row in of_figure],
            of_figure[0].peer_name: [(row.size_gib, row.peer) for row in of_figure],
        }
        panels.append(Panel(title, lines))
    return plot(f"Incremental backup after {CHANGED_MIB} MiB of pages changed", "size of the database, GiB", panels)
