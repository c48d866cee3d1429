"""A running server on a copy of a workload, changed between backups, whose log the tools follow all the time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lib import measure as measuring
from lib import system
from lib.cluster import DATABASE, Probe, probe
from lib.context import Context
from lib.measure import Process, Sample, measure
from lib.postgres import Server
from lib.results import mib
from lib.system import BenchError, Cpu
from lib.tools import FULL, BackupTool, Holdfast, HoldfastReceiver, PgBackRest

SETTLE_SECONDS_MAX = 600


class Live:
    """As a context: made at its start, thrown away at its end.

    Holdfast's receiver runs all the time; pgBackRest's archive_command too, if it takes part.
    """

    def __init__(
        self, context: Context, source: Path, with_peer: bool = True, settings: dict[str, str] | None = None
    ) -> None:
        self._context = context
        self._source = source
        self.directory = context.work / "live"
        self.cluster = self.directory / "data"
        self.holdfast = Holdfast(context.work, context.holdfast_program)
        self.peer = PgBackRest(context.work, context.pgbackrest_program, self.cluster) if with_peer else None
        self.tools: list[BackupTool] = [self.holdfast, self.peer] if self.peer else [self.holdfast]
        self._settings = {
            # Not all the disk: a large change makes several GiB of log.
            "max_wal_size": "2GB",
            **(self.peer.server_settings if self.peer else {}),
            **(settings or {}),
        }
        self._receiver = HoldfastReceiver(self.holdfast)
        self._receiving: Process | None = None
        self.server: Server

    def __enter__(self) -> Live:
        system.remove(self.directory)
        system.make_directory(self.directory)
        log = self._context.work / "log" / "live.log"
        measuring.run(["cp", "-a", "--reflink=auto", str(self._source), str(self.cluster)], log)
        self.server = Server(self.cluster, self._context.socket, self._context.port, log, self._settings)
        # It will be thrown away.
        self.server.abandon()
        try:
            self.server.__enter__()
            if self.peer:
                self.peer.prepare(self.server)
            self._receiving = self._receiver.start(self.server)
            self._receiver.wait_until_streaming(self.server, self._receiving)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._receiving:
            self._receiving.kill()
        self.server.stop()
        system.remove(self.directory)
        if not self._context.keep:
            for tool in self.tools:
                tool.remove()

    def order(self, turn: int) -> list[BackupTool]:
        """Each tool is first in every other turn."""
        return self.tools[::-1] if turn % 2 else self.tools

    def stop_receiver(self) -> None:
        """Cleanly: all that the server has written is in the repository then."""
        if self._receiving:
            self._receiver.stop(self._receiving)
            self._receiving = None

    def log_cpu(self, tool: BackupTool) -> Cpu:
        """What bringing the log into that tool's repository has used."""
        if tool is not self.holdfast:
            return self.server.archiver_cpu()
        return system.tree_cpu(self._receiving.pid) if self._receiving else Cpu()

    def settle(self) -> None:
        """Everything is on disk, and every tool has all of the log."""
        self.server.query("checkpoint")
        self.server.query("select pg_switch_wal()")
        end = self.server.query("select pg_current_wal_flush_lsn()")
        received = f"select coalesce(max(flush_lsn) >= '{end}', false) from pg_stat_replication"
        waiting = self.cluster / "pg_wal" / "archive_status"
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            is_received = not self._receiving or self.server.query(received) == "t"
            if is_received and not any(waiting.glob("*.ready")):
                break
            if time.monotonic() > deadline or (self._receiving and not self._receiving.is_running()):
                raise BenchError(f"the log up to {end} does not get into the repositories; see {self._context.work}/log")
            time.sleep(0.1)
        os.sync()

    def log_position(self) -> int:
        return int(self.server.query("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"))

    def probe(self) -> Probe:
        return probe(self.server)

    def all_messages(self) -> Probe:
        """A fingerprint of all messages: slow."""
        sql = "select count(*), sum(hashtextextended(m::text, 0)), max(id) from messages m"
        return Probe(sql, self.server.query(sql, DATABASE))

    def backup(self, tool: BackupTool, kind: str = FULL) -> None:
        """One that is not measured."""
        measuring.run(tool.backup_command(self.server, kind), tool.log)
        tool.has_backup = True

    def measured(self, tool: BackupTool, kind: str, case: str) -> Sample:
        """One backup, from a cold page cache, of a server at rest."""
        self.settle()
        others = [other for other in self.tools if other is not tool]

        def beside() -> Cpu:
            return sum((self.log_cpu(other) for other in others), Cpu())

        def server_cpu() -> Cpu:
            # With what brings the tool's own log, and only that: the server counts archive_command as its own.
            if tool is not self.holdfast:
                return self.server.cpu()
            return self.server.cpu() - beside() + self.log_cpu(tool)

        before = tool.stored_bytes()
        sample = measure(tool.name, tool.backup_command(self.server, kind), tool.log, server_cpu, beside=beside)
        sample.case = case
        sample.details["repository_bytes"] = tool.stored_bytes() - before
        if (found := tool.kinds()[-1]) != kind:
            raise BenchError(f"{tool.name} made a {found} backup instead of the {kind}; see {tool.log}")
        return sample


def told(sample: Sample) -> str:
    """One line for the person who waits."""
    return (
        f"{sample.tool}: wall {sample.wall:.1f} s, CPU {sample.cpu:.1f} s, read {mib(sample.details['bytes_read']):,.0f} MiB,"
        f" stored {mib(sample.details['repository_bytes']):,.0f} MiB, noise {sample.noise:.0%}"
    )
