"""The same change in databases of different sizes: what an incremental costs must follow the change, not the size."""

from __future__ import annotations

from pathlib import Path

from lib import changes, cluster, postgres, system
from lib.context import Context
from lib.incremental import changed, comparison, figures, seed
from lib.live import Live, told
from lib.measure import Sample
from lib.plot import Panel, plot
from lib.results import PartResult, Row
from lib.tools import FULL, INCREMENTAL, PgBackRest

CHANGED_MIB = 64
PICTURE = "growth.svg"
# Of the size: the database itself, a full backup of each tool, and log.
DISK_FACTOR = 2.0
FIGURES = (
    ("wall", "seconds"),
    ("cpu", "CPU seconds"),
    ("bytes_read", "MiB read"),
    ("repository", "MiB written to the repository"),
)


def run(context: Context) -> PartResult:
    samples: list[Sample] = []
    found: list[Row] = []
    programs = postgres.newest_programs()
    about_peer: dict[str, str] = {}
    for size in context.growth_sizes:
        there = cluster.made(size, context.work)
        factor = DISK_FACTOR - (1 if there else 0)
        system.check_disk(context.work, factor * size * (1 << 30), f"growth with {size:g} GiB")
        made = cluster.make(context.lab_program, size, context.work, context.socket, context.port)
        case = f"incremental_growth_{size:g}"
        for turn in range(context.repeat):
            with cluster.borrowed(made):
                samples += one_turn(context, made, case, turn)
        size_gib = round(system.apparent_bytes(made / "base") / (1 << 30), 2)
        peer = PgBackRest(context.work, context.pgbackrest_program, made)
        about_peer = {peer.name: peer.version}
        found += figures(comparison(context, case, samples, size_gib, peer), case)
        programs = postgres.programs_for(made)
        if not there and not context.keep:
            # Of the largest there is no room for two.
            system.remove(made.parent)
    sizes = ", ".join(f"{size:g}" for size in context.growth_sizes)
    about = context.about(
        programs,
        f"made by the lab, {sizes} GiB; {CHANGED_MIB} MiB of pages changed in each",
        about_peer,
    )
    return PartResult("growth", found, samples, about, {PICTURE: picture(found)})


def one_turn(context: Context, source: Path, case: str, turn: int) -> list[Sample]:
    samples = []
    pages = CHANGED_MIB * system.MIB // changes.PAGE_BYTES
    with Live(context, source, in_place=True) as live:
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
    for figure, title in FIGURES:
        of_figure = sorted((row for row in found if row.name.endswith(f".{figure}")), key=lambda row: row.size_gib)
        lines = {
            "Holdfast": [(row.size_gib, row.ours) for row in of_figure],
            of_figure[0].peer_name: [(row.size_gib, row.peer) for row in of_figure],
        }
        panels.append(Panel(title, lines))
    return plot(f"Incremental backup after {CHANGED_MIB} MiB of pages changed", "size of the database, GiB", panels)
