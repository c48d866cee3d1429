"""A running server on a copy of a workload, changed between backups, whose log the tools follow all the time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

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

    Holdfast's receiver runs all the time; pgBackRest's archive_command too, if it takes part. `more`: other peers.
    `in_place`: on the source itself, for changes that do no harm, where the disk has no room for a copy.
    """

    def __init__(
        self,
        context: Context,
        source: Path,
        with_peer: bool = True,
        settings: dict[str, str] | None = None,
        more: Sequence[BackupTool] = (),
        in_place: bool = False,
    ) -> None:
        self._context = context
        self._source = source
        self.directory = context.work / "live"
        self._in_place = in_place
        self.cluster = source if in_place else self.directory / "data"
        self.holdfast = Holdfast(context.work, context.holdfast_program)
        self.peer = PgBackRest(context.work, context.pgbackrest_program, self.cluster) if with_peer else None
        self.tools: list[BackupTool] = [self.holdfast, *([self.peer] if self.peer else []), *more]
        self._more = more
        self._settings = {
            # Not all the disk: a large change makes several GiB of log.
            "max_wal_size": "2GB",
            **{name: value for tool in self.tools for name, value in tool.server_settings.items()},
            **(settings or {}),
        }
        self._receiver = HoldfastReceiver(self.holdfast)
        self._receiving: Process | None = None
        self._following: dict[str, Process] = {}
        self.server: Server

    def __enter__(self) -> Self:
        system.remove(self.directory)
        system.make_directory(self.directory)
        log = self._context.work / "log" / "live.log"
        if not self._in_place:
            measuring.run(["cp", "-a", "--reflink=auto", str(self._source), str(self.cluster)], log)
        self.server = Server(self.cluster, self._context.socket, self._context.port, log, self._settings)
        if not self._in_place:
            # It will be thrown away.
            self.server.abandon()
        try:
            self.server.__enter__()
            if self.peer:
                self.peer.prepare(self.server)
            self._receiving = self._receiver.start(self.server)
            self._receiver.wait_until_streaming(self.server, self._receiving)
            for tool in self._more:
                tool.prepare(self.server)
                if following := tool.follow(self.server):
                    self._following[tool.name] = following
                    # It begins with the current file, which has to get an end.
                    self.server.query("select pg_logical_emit_message(true, 'bench', '')")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._following.values():
            process.kill()
        if self._receiving:
            self._receiving.kill()
            if self._in_place and self.server.is_running():
                self._receiver.drop_slot(self.server)
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

    def empty_repository(self) -> None:
        """Ours begins anew, as full backups take room; pgBackRest keeps two by itself."""
        self.stop_receiver()
        self._receiver.drop_slot(self.server)
        self._receiving = self._receiver.start(self.server)
        self._receiver.wait_until_streaming(self.server, self._receiving)

    def log_cpu(self, tool: BackupTool) -> Cpu:
        """What bringing the log into that tool's repository has used, or what it learned of the log otherwise."""
        if tool is self.peer:
            return self.server.archiver_cpu()
        if tool is self.holdfast:
            return system.tree_cpu(self._receiving.pid) if self._receiving else Cpu()
        if tool.name in self._following:
            return system.tree_cpu(self._following[tool.name].pid)
        return self.server.child_cpu("walsummarizer")

    def _is_of_server(self, tool: BackupTool) -> bool:
        """Whether the server counts that as its own."""
        return tool is not self.holdfast and tool.name not in self._following

    def settle(self) -> None:
        """Everything is on disk, and every tool has all of the log."""
        self.server.query("checkpoint")
        # The file that this ended, or an earlier one.
        segment = self.server.query("select pg_walfile_name(pg_switch_wal() - 1)")
        end = self.server.query("select pg_current_wal_flush_lsn()")
        received = (
            f"select coalesce(max(flush_lsn) >= '{end}', false) from pg_stat_replication r"
            f" join pg_replication_slots s on s.active_pid = r.pid and s.slot_name = '{self._receiver.slot}'"
        )
        waiting = self.cluster / "pg_wal" / "archive_status"
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            is_received = not self._receiving or self.server.query(received) == "t"
            if is_received and not any(waiting.glob("*.ready")) and all(tool.has_log(segment) for tool in self._more):
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
            # With what brings the tool's own log, and only that.
            of_others = sum((self.log_cpu(other) for other in others if self._is_of_server(other)), Cpu())
            own = Cpu() if self._is_of_server(tool) else self.log_cpu(tool)
            return self.server.cpu() - of_others + own

        read_before = self.server.bytes_read()
        before = tool.stored_bytes()
        sample = measure(tool.name, tool.backup_command(self.server, kind), tool.log, server_cpu, beside=beside)
        sample.case = case
        sample.details["repository_bytes"] = tool.stored_bytes() - before
        if tool.reads_in_server:
            sample.details["bytes_read"] += self.server.bytes_read() - read_before
        if packed := tool.packed_bytes():
            sample.details["packed_bytes"] = packed
        if (found := tool.kinds()[-1]) != kind:
            raise BenchError(f"{tool.name} made a {found} backup instead of the {kind}; see {tool.log}")
        tool.tidy()
        return sample


def told(sample: Sample) -> str:
    """One line for the person who waits."""
    return (
        f"{sample.tool}: wall {sample.wall:.1f} s, CPU {sample.cpu:.1f} s, read {mib(sample.details['bytes_read']):,.0f} MiB,"
        f" stored {mib(sample.details['repository_bytes']):,.0f} MiB, noise {sample.noise:.0%}"
    )
