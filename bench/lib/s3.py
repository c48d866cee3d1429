"""Full backup and restore through an S3 server of which each answer takes 20 ms longer, beside a directory, and beside restic on
the same server. restic copies the files of the stopped cluster; it knows nothing of databases."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib import system
from lib.context import Context
from lib.full import backup
from lib.measure import Sample, measure
from lib.restore import restore
from lib.results import Comparison, PartResult, Row
from lib.system import BenchError
from lib.tools import Holdfast, HoldfastS3, Restic

DELAY_MS = 20


class Server:
    """The server's process, and what it answers."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program), str(DELAY_MS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the S3 server has ended: run scripts/install-deps.sh")
        return json.loads(line)

    def _ask(self, line: str) -> dict:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def make_bucket(self, name: str) -> None:
        self._ask(f"bucket {name}")

    def requests(self) -> int:
        return self._ask("requests")["requests"]

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def server(program: Path) -> Iterator[Server]:
    running = Server(program)
    try:
        yield running
    finally:
        running.stop()


def run(context: Context) -> PartResult:
    context.workload.probe()
    samples: dict[str, list[Sample]] = {}

    def add(turn: int, name: str, sample: Sample, requests: int) -> None:
        sample.tool, sample.details["requests"] = name, requests
        samples.setdefault(name, []).append(sample)
        context.say(
            f"s3 {turn + 1}/{context.repeat} {name}: wall {sample.wall:.1f} s, CPU {sample.cpu:.1f} s,"
            f" {requests} requests, noise {sample.noise:.0%}"
        )

    for turn in range(context.repeat):
        directory = Holdfast(context.work, context.holdfast_program, "holdfast_directory")
        add(turn, "directory.full", backup(context, directory), 0)
        add(turn, "directory.restore", restore(context, directory, context.workload.probe()), 0)
        directory.remove()
        # A new one each time: it keeps everything in memory.
        with server(context.s3_program) as place:
            place.make_bucket("holdfast")
            ours = HoldfastS3(context.work, context.holdfast_program, place.about)
            before = place.requests()
            add(turn, "s3.full", backup(context, ours), place.requests() - before)
            before = place.requests()
            add(turn, "s3.restore", restore(context, ours, context.workload.probe()), place.requests() - before)
            ours.remove()
            if Restic.is_there():
                place.make_bucket("restic")
                peer = Restic(context.work, context.workload.cluster, place.about)
                peer.make()
                before = place.requests()
                full = measure(peer.name, peer.backup_command(), peer.log)
                add(turn, "restic.full", full, place.requests() - before)
                target = context.work / "restored"
                system.remove(target)
                before = place.requests()
                back = measure(peer.name, peer.restore_command(target), peer.log)
                add(turn, "restic.restore", back, place.requests() - before)
                system.remove(target)
                peer.remove()
    return PartResult("s3", rows(context, samples), [s for each in samples.values() for s in each], context.about_workload())


def rows(context: Context, samples: dict[str, list[Sample]]) -> list[Row]:
    size, at, version = context.workload.size_gib, context.at, context.holdfast.version
    found = []
    for job in ("full", "restore"):
        ours = samples[f"s3.{job}"]
        pair = Comparison(ours, samples[f"directory.{job}"], "holdfast, a directory", version, size, at)
        found.append(pair.row(f"s3.{job}.wall", "s", lambda s: s.wall))
        found.append(pair.row(f"s3.{job}.cpu", "s", lambda s: s.cpu))
        if theirs := samples.get(f"restic.{job}"):
            pair = Comparison(ours, theirs, "restic", Restic.version(), size, at)
            # restic's end is that of its command; ours is the first answer of the restored server.
            found.append(pair.row(f"s3_restic.{job}.wall", "s", lambda s: s.wall))
            found.append(pair.row(f"s3_restic.{job}.cpu", "s", lambda s: s.cpu))
            found.append(pair.row(f"s3_restic.{job}.requests", "per GiB", lambda s: s.details["requests"] / size))
    return found
