#!/usr/bin/env python3
"""Measures Holdfast against its peers, in turn and in one run. See README.md beside this file."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from lib import (
    chain,
    cluster,
    delta,
    fan_out,
    full,
    growth,
    impact,
    incremental,
    replay,
    restore,
    results,
    s3,
    system,
    wal,
)
from lib.context import Context
from lib.system import BenchError

BENCH = Path(__file__).resolve().parent
TARGET = BENCH.parent / "target" / "release"
PARTS = {
    "full": full.run,
    "restore": restore.run,
    "delta": delta.run,
    "incremental": incremental.run,
    "chain": chain.run,
    "growth": growth.run,
    "replay": replay.run,
    "impact": impact.run,
    "wal": wal.run,
    "fan_out": fan_out.run,
    "s3": s3.run,
}
OTHER_PEERS = ("pg_basebackup", "barman")
NEED_PGBACKREST = {"full", "restore", "delta", "incremental", "chain", "growth", "impact"}
NEED_WORKLOAD = set(PARTS) - {"wal", "growth"}
# What each takes at its highest beside the workload: GiB, and GiB for each of its size. `growth` asks for itself.
# With all peers; without any beside pgBackRest, a half less.
DISK = {
    "full": (1, 1.0),
    "restore": (1, 2.0),
    "delta": (2, 3.2),
    "incremental": (3, 7.5),
    "chain": (4, 26.0),
    "replay": (5, 2.5),
    "impact": (5, 3.5),
    "wal": (16, 0.0),
    "fan_out": (1, 3.0),
    "s3": (1, 2.0),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--size-gib", type=float, default=8, metavar="N", help="size of the workload (default 8)")
    parser.add_argument("--cluster", type=Path, metavar="DIR", help="a stopped cluster as workload, instead of a made one")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns (default 3)")
    parser.add_argument("--wal-seconds", type=int, default=30, metavar="N", help="how long pgbench runs (default 30)")
    parser.add_argument(
        "--chain-lengths", default="1,10,50", metavar="N,N", help="incrementals before each restore (default 1,10,50)"
    )
    parser.add_argument(
        "--impact-seconds", type=int, default=90, metavar="N", help="how long each window of impact is (default 90)"
    )
    parser.add_argument("--impact-rate", type=int, default=500, metavar="N", help="commits a second in impact (default 500)")
    parser.add_argument(
        "--growth-sizes", default="1,4,16", metavar="N,N", help="sizes in GiB that growth compares (default 1,4,16)"
    )
    parser.add_argument(
        "--peers",
        default=",".join(OTHER_PEERS),
        metavar="NAMES",
        help=f"who takes part in incremental and chain beside pgBackRest: some of {','.join(OTHER_PEERS)}, or nobody",
    )
    parser.add_argument("--work", type=Path, default=BENCH / "work", metavar="DIR", help="needs 50 GB for 8 GiB")
    parser.add_argument("--results", type=Path, default=BENCH, metavar="DIR", help="where the results go (default bench)")
    parser.add_argument("--holdfast", type=Path, default=TARGET / "holdfast", metavar="PATH")
    parser.add_argument("--lab", type=Path, default=TARGET / "lab", metavar="PATH")
    parser.add_argument("--s3-server", type=Path, default=TARGET / "examples" / "s3_server", metavar="PATH")
    parser.add_argument("--port", type=int, default=55470, metavar="N", help="of the servers' sockets; N+1 is used too")
    parser.add_argument(
        "--prepare", action="store_true", help="only make the workloads of these parts, which takes long, and keep them"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="never wait for a quiet machine: to see that it runs, for no figures"
    )
    parser.add_argument("--keep", action="store_true", help="leave the last repositories in the work directory")
    options = parser.parse_args(argv)
    options.parts = [part for part in options.only.split(",") if part]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    options.peers = [peer for peer in options.peers.split(",") if peer]
    if unknown := set(options.peers) - set(OTHER_PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    try:
        options.growth_sizes = sorted({float(size) for size in options.growth_sizes.split(",")})
        options.chain_lengths = sorted({int(length) for length in options.chain_lengths.split(",")})
    except ValueError:
        parser.error("--growth-sizes and --chain-lengths are lists of numbers")
    # Always in this order: the restores use the backups.
    options.parts = [part for part in PARTS if part in options.parts]
    return options


def find_pgbackrest() -> Path:
    chosen = os.environ.get("PGBACKREST") or shutil.which("pgbackrest")
    if not chosen:
        raise BenchError("no pgbackrest: install Debian's package, or set PGBACKREST to the program")
    return Path(chosen).resolve()


def own_copy(program: Path, work: Path) -> Path:
    """A build that goes on meanwhile cannot change it, and the user who runs PostgreSQL can reach it."""
    if not program.exists():
        raise BenchError(f"{program} is missing: run `cargo build --release`")
    copy = system.make_directory(work / "bin") / program.name
    system.remove(copy)
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    return copy


def run(options: argparse.Namespace, socket: Path) -> None:
    system.is_patient = not options.rehearse
    work = system.make_work_directory(options.work.resolve())
    system.make_directory(socket)
    system.make_directory(work / "log")
    parts = set(options.parts)
    needs_lab = "growth" in parts or (not options.cluster and bool(NEED_WORKLOAD & parts))
    context = Context(
        parts=options.parts,
        work=work,
        socket=socket,
        holdfast_program=own_copy(options.holdfast, work),
        pgbackrest_program=find_pgbackrest() if NEED_PGBACKREST & parts else Path(),
        s3_program=options.s3_server,
        lab_program=own_copy(options.lab, work) if needs_lab else Path(),
        size_gib=options.size_gib,
        given_cluster=options.cluster.resolve() if options.cluster else None,
        repeat=options.repeat,
        wal_seconds=options.wal_seconds,
        chain_lengths=options.chain_lengths,
        impact_seconds=options.impact_seconds,
        impact_rate=options.impact_rate,
        growth_sizes=options.growth_sizes,
        peers=options.peers,
        keep=options.keep,
        port=options.port,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not system.IS_ROOT:
        context.say("not root: the page cache stays warm, which the results will say")
    check_disk(context)
    if options.prepare:
        prepare(context)
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        result = PARTS[part](context)
        results.store(options.results, result)
        noise = max(sample.noise for sample in result.samples)
        if noise > results.NOISY:
            context.say(f"{part}: up to {noise:.0%} of the machine went elsewhere; do not publish these figures")
    context.say(f"done; see {options.results / results.TABLE}")


def check_disk(context: Context) -> None:
    """Before anything begins: that of the part which takes the most, and of the workload if it has to be made."""
    gib = 1 << 30
    if context.given_cluster:
        size, missing = context.workload.size_gib, 0.0
    else:
        size = context.size_gib
        missing = 0.0 if cluster.made(size, context.work) else size
    for part in set(context.parts) & set(DISK):
        base, factor = DISK[part]
        if part in ("incremental", "chain") and not context.peers:
            factor /= 2
        needed = base + factor * size + (missing if part in NEED_WORKLOAD else 0)
        system.check_disk(context.work, needed * gib, f"{part} with {size:g} GiB")
    if "growth" in context.parts:
        largest = max(context.growth_sizes)
        needed = growth.DISK_FACTOR * largest - (largest if cluster.made(largest, context.work) else 0)
        system.check_disk(context.work, needed * gib, f"growth with {largest:g} GiB")


def prepare(context: Context) -> None:
    """What needs no quiet machine."""
    sizes = set(context.growth_sizes) if "growth" in context.parts else set()
    if not context.given_cluster and NEED_WORKLOAD & set(context.parts):
        sizes.add(context.size_gib)
    for size in sorted(sizes):
        cluster.make(context.lab_program, size, context.work, context.socket, context.port)


def main() -> int:
    # A server or a tool that runs is stopped by the contexts that started it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = parse(sys.argv[1:])
        # Short, as the name of a socket has to be.
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir="/tmp") as socket:
            run(options, Path(socket))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
