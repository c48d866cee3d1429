"""The results: kept in JSON, so that a run of one part replaces only its own, and shown as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from lib.measure import Sample
from lib.system import MIB

RESULTS = "results.json"
RUNS = "runs.json"
TABLE = "results.md"

NOISY = 0.10


@dataclass(frozen=True)
class Goal:
    """What an issue asks for; a bound on the ratio ours to peer, or on ours alone."""

    of: str
    at_most: float | None = None
    at_least: float | None = None

    def met(self, row: dict) -> bool | None:
        value = row[self.of]
        if value is None:
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def __str__(self) -> str:
        bound = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        return f"{self.of} {bound}"


GOALS = {
    "full.wall": Goal("ratio", at_most=0.75),
    "full.cpu": Goal("ratio", at_most=0.75),
    "full.repository": Goal("ratio", at_most=1.0),
    "full.memory": Goal("ours", at_most=512),
    "restore.wall": Goal("ratio", at_most=0.75),
    "restore.memory": Goal("ours", at_most=512),
    "wal.pgbench_tps": Goal("ratio", at_least=0.90),
    "incremental_pages.wall": Goal("ratio", at_most=0.2),
    "incremental_pages.bytes_read": Goal("ratio", at_most=0.1),
    "incremental_edits.cpu": Goal("ratio", at_most=0.5),
    "incremental_edits.repository": Goal("ratio", at_most=0.75),
    "chain50.restore.wall": Goal("ratio", at_most=1.15),
    "replay1g.wall": Goal("ratio", at_most=1.1),
    "replay1g.latency.wall": Goal("ratio", at_most=1.11),
    "fan_out3.cpu": Goal("ratio", at_most=1.25),
    # 0.85 of a directory's rate.
    "s3.full.wall": Goal("ratio", at_most=1.18),
    "s3.restore.wall": Goal("ratio", at_most=1.18),
    "impact.p99": Goal("ours", at_most=1.10),
}


@dataclass(frozen=True)
class Row:
    """One compared figure, in the form of results.json."""

    name: str
    ours: float
    peer: float
    ratio: float | None
    unit: str
    peer_name: str
    peer_version: str
    n: int
    size_gib: float
    at: str


@dataclass(frozen=True)
class Comparison:
    """The runs of ours and of one peer, made in turn."""

    ours: list[Sample]
    peer: list[Sample]
    peer_name: str
    peer_version: str
    size_gib: float
    at: str

    def row(self, name: str, unit: str, figure: Callable[[Sample], float]) -> Row:
        ours, peer = median(map(figure, self.ours)), median(map(figure, self.peer))
        ratio = round(ours / peer, 3) if peer else None
        n = min(len(self.ours), len(self.peer))
        return Row(
            name, round(ours, 2), round(peer, 2), ratio, unit, self.peer_name, self.peer_version, n, self.size_gib, self.at
        )


@dataclass(frozen=True)
class PartResult:
    """What one part of the benchmark found."""

    part: str
    rows: list[Row]
    samples: list[Sample]
    about: dict[str, str]
    # Pictures and the like: name and content.
    files: dict[str, str] = field(default_factory=dict)


def mib(size: float) -> float:
    return size / MIB


def store(directory: Path, result: PartResult) -> None:
    """Replaces what is known of this part, and writes the table anew."""
    runs = _read(directory / RUNS, {})
    names = [row.name for row in result.rows]
    replaced = {*names, *runs.get(result.part, {}).get("names", [])}
    rows = [row for row in _read(directory / RESULTS, []) if row["name"] not in replaced]
    rows = sorted([*rows, *map(asdict, result.rows)], key=lambda row: row["name"].split("."))
    samples = [sample.as_json() for sample in result.samples]
    pictures = [name for name in result.files if name.endswith(".svg")]
    runs[result.part] = {"about": result.about, "names": names, "pictures": pictures, "samples": samples}
    runs = dict(sorted(runs.items()))
    _write(directory / RESULTS, json.dumps(rows, indent=2, ensure_ascii=False))
    _write(directory / RUNS, json.dumps(runs, indent=1, ensure_ascii=False))
    _write(directory / TABLE, table(rows, runs))
    for name, content in result.files.items():
        _write(directory / name, content)


def _read(path: Path, absent: list | dict) -> list | dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return absent


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(text.rstrip("\n") + "\n")
    os.replace(fresh, path)


def table(rows: list[dict], runs: dict) -> str:
    """The report."""
    lines = ["# Benchmark results", "", "<!-- Made by `bench/run.py`. Do not edit. -->", ""]
    lines += ["Medians of runs made in turn. `README.md` beside this says what they are and how to read them.", ""]
    lines += _lines(
        ["figure", "ours", "peer", "ratio", "unit", "goal", "peer is", "n", "noise", "size"], map(_shown(runs), rows)
    )
    for part, run in runs.items():
        about = run["about"]
        lines += ["", f"## {part}", ""]
        lines += [f"* {name}: {value}" for name, value in about.items()]
        for picture in run.get("pictures", []):
            lines += ["", f"![{part}]({picture})"]
        lines += ["", "Every run, in the order they were made:", ""]
        lines += _runs(run["samples"])
    return "\n".join(lines)


def _shown(runs: dict) -> Callable[[dict], list[str]]:
    def shown(row: dict) -> list[str]:
        goal = GOALS.get(row["name"])
        verdict = ""
        if goal:
            met = goal.met(row)
            verdict = f"{goal}: {'unknown' if met is None else 'met' if met else '**missed**'}"
        peer = f"{row['peer_name']} {row['peer_version']}".strip()
        # Of the runs that this figure comes from.
        tools = ("holdfast", row["peer_name"])
        of_part = [run["samples"] for run in runs.values() if row["name"] in run["names"]]
        named = row["name"].split(".", 1)[0]
        # A name may end with that of the peer.
        cases = ("", named, named.removesuffix(f"_{row['peer_name'].removeprefix('pg_')}"))
        samples = [s for samples in of_part for s in samples if s["tool"] in tools and s.get("case", "") in cases]
        noise = max((s["noise"] for s in samples), default=0)
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        return [
            row["name"], _number(row["ours"]), _number(row["peer"]), ratio, row["unit"], verdict, peer, str(row["n"]),
            f"{noise:.0%}{' **noisy**' if noise > NOISY else ''}", f"{row['size_gib']:g} GiB",
        ]  # fmt: skip

    return shown


def _runs(samples: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for sample in samples for name in sample["details"]))
    has_cases = any(sample.get("case") for sample in samples)
    heads = [
        *(["case"] if has_cases else []),
        "tool",
        "wall s",
        "user s",
        "system s",
        "server CPU s",
        "memory MiB",
        "largest process MiB",
        "noise",
    ]
    heads += ["kernel threads CPU s", "cold", *(name.replace("_", " ") for name in names)]
    return _lines(
        heads,
        (
            [
                *([sample["case"]] if has_cases else []),
                sample["tool"],
                *(_number(sample[key]) for key in ("wall", "user", "system", "server_cpu")),
                *(_number(mib(sample[key])) for key in ("memory_sum", "memory_max_process")),
                f"{sample['noise']:.0%}",
                _number(sample["kernel_cpu"]),
                "yes" if sample["caches_dropped"] else "no",
                *(_number(sample["details"][name]) if name in sample["details"] else "" for name in names),
            ]
            for sample in samples
        ),
    )


def _lines(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    rule = ["---:" if head not in ("figure", "case", "tool", "unit", "goal", "peer is") else "---" for head in heads]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
