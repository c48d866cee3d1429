"""One full backup into three repositories at once, beside the same into one."""

from __future__ import annotations

from lib.context import Context
from lib.full import backup
from lib.measure import Sample
from lib.results import Comparison, PartResult, mib
from lib.tools import Holdfast, HoldfastThree


def run(context: Context) -> PartResult:
    one = Holdfast(context.work, context.holdfast_program, "holdfast_one")
    three = HoldfastThree(context.work, context.holdfast_program, "holdfast_three")
    samples: dict[str, list[Sample]] = {one.directory.name: [], three.directory.name: []}
    for turn in range(context.repeat):
        for tool in (three, one):
            sample = backup(context, tool)
            sample.tool = tool.directory.name
            context.say(
                f"fan_out {turn + 1}/{context.repeat} {sample.tool}: wall {sample.wall:.1f} s, CPU {sample.cpu:.1f} s,"
                f" noise {sample.noise:.0%}"
            )
            samples[sample.tool].append(sample)
            tool.remove()
    pair = Comparison(
        samples[three.directory.name],
        samples[one.directory.name],
        "holdfast, one repository",
        one.version,
        context.workload.size_gib,
        context.at,
    )
    rows = [
        pair.row("fan_out3.cpu", "s", lambda s: s.cpu),
        pair.row("fan_out3.wall", "s", lambda s: s.wall),
        pair.row("fan_out3.memory", "MiB", lambda s: mib(s.memory_sum)),
    ]
    return PartResult("fan_out", rows, [s for each in samples.values() for s in each], context.about_workload())
