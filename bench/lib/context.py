"""What all parts of one run share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lib import cluster, postgres, system
from lib.cluster import Workload
from lib.tools import BackupTool, Barman, Holdfast, PgBackRest, PgBaseBackup, PgIncremental, PlainZstd


def _commit() -> str:
    """Of the tree that the program is built from, as far as anybody can tell."""
    tree = str(Path(__file__).parents[2])
    # Git refuses the trees of others, which it is for root now and then.
    git = ["git", "-c", f"safe.directory={tree}", "-C", tree]
    return system.command_output([*git, "describe", "--always", "--dirty", "--abbrev=10"])


@dataclass
class Context:
    """The options of the run, and the workload and tools, made when a part first asks for them."""

    parts: list[str]
    work: Path
    socket: Path
    holdfast_program: Path
    pgbackrest_program: Path
    lab_program: Path
    s3_program: Path
    size_gib: float
    given_cluster: Path | None
    repeat: int
    wal_seconds: int
    # After so many incrementals there is a restore.
    chain_lengths: list[int]
    impact_seconds: int
    impact_rate: int
    growth_sizes: list[float]
    # Beside pgBackRest.
    peers: list[str]
    keep: bool
    port: int
    at: str
    commit: str = field(default_factory=_commit)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.0f} s] {text}", flush=True)

    @cached_property
    def workload(self) -> Workload:
        given = self.given_cluster
        directory = given or cluster.make(self.lab_program, self.size_gib, self.work, self.socket, self.port)
        return Workload(directory, self.work, self.socket, self.port)

    @cached_property
    def holdfast(self) -> Holdfast:
        return Holdfast(self.work, self.holdfast_program)

    @cached_property
    def pgbackrest(self) -> PgBackRest:
        return PgBackRest(self.work, self.pgbackrest_program, self.workload.cluster)

    @cached_property
    def pg_basebackup(self) -> PgBaseBackup:
        return PgBaseBackup(self.work, postgres.programs_for(self.workload.cluster))

    @cached_property
    def plain_zstd(self) -> PlainZstd:
        return PlainZstd(self.work, self.workload.cluster)

    @property
    def tools(self) -> list[BackupTool]:
        return [self.holdfast, self.pgbackrest, self.pg_basebackup, self.plain_zstd]

    def pg_incremental(self, cluster: Path) -> list[PgIncremental]:
        """PostgreSQL's own, if the cluster is new enough."""
        if "pg_basebackup" not in self.peers:
            return []
        if (version := postgres.version_of(cluster)) < PgIncremental.VERSION_MIN:
            self.say(f"PostgreSQL {version} has no incremental backup of its own: it is left out")
            return []
        return [PgIncremental(self.work, postgres.programs_for(cluster))]

    def barman(self, cluster: Path) -> list[Barman]:
        """If it is installed."""
        if "barman" not in self.peers:
            return []
        if not Barman.is_there():
            self.say("no barman, or no rsync: it is left out")
            return []
        return [Barman(self.work, postgres.programs_for(cluster))]

    @property
    def restorers(self) -> list[BackupTool]:
        return [self.holdfast, self.pgbackrest]

    def about(self, programs: Path, data: str, peers: dict[str, str]) -> dict[str, str]:
        """What a reader has to know to compare the figures with others."""
        return {
            "at": self.at,
            "data": data,
            "holdfast": f"{self.holdfast.version} ({self.commit or 'no commit'})",
            **peers,
            "PostgreSQL": system.command_output([str(programs / "postgres"), "--version"]).removeprefix(
                "postgres (PostgreSQL) "
            ),
            **system.describe(self.work),
        }

    def about_workload(self) -> dict[str, str]:
        """The same for the parts that use the workload."""
        made_by = str(self.given_cluster or "made by the lab")
        data = f"{made_by}, {self.workload.size_gib:g} GiB"
        programs = postgres.programs_for(self.workload.cluster)
        # Not every part compares with it.
        peers = {"pgBackRest": self.pgbackrest.version} if self.pgbackrest_program.name else {}
        return self.about(programs, data, peers)
