"""PostgreSQL servers on clusters that the benchmark makes or is given."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

from lib import measure, system
from lib.system import BenchError, Cpu

START_SECONDS_MAX = 600
# In the control file.
IN_PRODUCTION = 6

# The same for all that is compared. Nothing that makes work by itself, no checkpoint but those that are asked for.
SETTINGS = {
    "listen_addresses": "",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "autovacuum": "off",
    "shared_buffers": "512MB",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "archive_mode": "off",
    "logging_collector": "off",
}


def installed() -> dict[int, Path]:
    """Where the programs of each major version are: Debian's, and what `scripts/install-postgres-18.sh` unpacked."""
    roots = [
        os.environ.get("HOLDFAST_PG_ROOT"),
        "/var/cache/holdfast/postgresql",
        Path.home() / ".cache/holdfast/postgresql",
    ]
    servers = [found for root in roots if root for found in Path(root).glob("[0-9]*/usr/lib/postgresql/*/bin/initdb")]
    servers += Path("/usr/lib/postgresql").glob("*/bin/initdb")
    # Of the same version, Debian's own.
    return {int(server.parts[-3]): server.parent for server in servers if server.parts[-3].isdigit()}


def newest_programs() -> Path:
    """Where the programs of the newest PostgreSQL are that is installed; $PGBIN has the last word."""
    if chosen := os.environ.get("PGBIN"):
        return Path(chosen)
    found = installed()
    if not found:
        raise BenchError("no PostgreSQL in /usr/lib/postgresql; set PGBIN to the directory of its programs")
    return found[max(found)]


def version_of(cluster: Path) -> int:
    """The major version that the cluster is of."""
    return int((cluster / "PG_VERSION").read_text().strip())


def programs_for(cluster: Path) -> Path:
    """Where the programs of the cluster's version are."""
    version = version_of(cluster)
    chosen = os.environ.get("PGBIN")
    programs = Path(chosen) if chosen else installed().get(version)
    if not programs or not (programs / "postgres").exists():
        raise BenchError(f"{cluster} is of version {version}, of which there is no server; set PGBIN to its programs")
    return programs


def initialise(cluster: Path, log: Path) -> None:
    """Makes an empty cluster with page checksums."""
    system.make_directory(cluster.parent)
    argv = [str(newest_programs() / "initdb"), "-D", str(cluster), "-U", "postgres", "-k", "-E", "UTF8"]
    measure.run([*argv, "--locale=C", "-A", "trust", "--no-sync"], log)


def is_clean(cluster: Path) -> bool:
    """Whether the cluster was shut down, by its control file."""
    control = system.command_output(
        system.as_server_user([str(programs_for(cluster) / "pg_controldata"), "-D", str(cluster)])
    )
    return any(line.startswith("Database cluster state:") and line.endswith(" shut down") for line in control.split("\n"))


class Server:
    """A running server; as a context it is stopped at the end, whatever happens."""

    def __init__(self, cluster: Path, socket: Path, port: int, log: Path, settings: dict[str, str] | None = None) -> None:
        self.cluster = cluster
        self.socket = socket
        self.port = port
        self.log = log
        self.programs = programs_for(cluster)
        self._settings = {**SETTINGS, **(settings or {})}
        self._stop_mode = "fast"

    def conninfo(self, database: str = "postgres") -> str:
        return f"host={self.socket} port={self.port} user=postgres dbname={database}"

    def program(self, name: str, *arguments: str) -> list[str]:
        """A client program with the arguments that make it connect to this server."""
        return [str(self.programs / name), "-h", str(self.socket), "-p", str(self.port), "-U", "postgres", *arguments]

    def launch(self, environment: dict[str, str] | None = None) -> None:
        """Starts it and does not wait until it answers. Its commands inherit `environment`."""
        if (self.cluster / "postmaster.pid").exists():
            raise BenchError(f"{self.cluster} has a postmaster.pid: is a server running there?")
        options = [f"-p {self.port}", f"-k '{self.socket}'"]
        options += [f"-c {name}={_quoted(value)}" for name, value in self._settings.items()]
        argv = [str(self.programs / "pg_ctl"), "-D", str(self.cluster), "-W", "-s", "-l", str(self.log)]
        measure.run([*argv, "-o", " ".join(options), "start"], self.log, environment)

    def __enter__(self) -> Self:
        try:
            self.launch()
            self.wait_for("select 1")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def abandon(self) -> None:
        """It will be thrown away: no need to stop it cleanly."""
        self._stop_mode = "immediate"

    def is_running(self) -> bool:
        return (self.cluster / "postmaster.pid").exists()

    def stop(self) -> None:
        if not (self.cluster / "postmaster.pid").exists():
            return
        argv = [str(self.programs / "pg_ctl"), "-D", str(self.cluster), "-w", "-s", "-t", str(START_SECONDS_MAX)]
        measure.run([*argv, "-m", self._stop_mode, "stop"], self.log)

    def postmaster(self) -> int:
        return int((self.cluster / "postmaster.pid").read_text().split("\n", 1)[0])

    def cpu(self) -> Cpu:
        """What the server has used since it started."""
        return system.tree_cpu(self.postmaster())

    def query(self, sql: str, database: str = "postgres") -> str:
        done = self._psql(sql, database)
        if done.returncode != 0:
            raise BenchError(f"psql failed on {self.cluster}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait_for(self, sql: str, database: str = "postgres") -> str:
        """Asks until there is an answer."""
        began = time.monotonic()
        while True:
            done = self._psql(sql, database)
            if done.returncode == 0:
                return done.stdout.strip()
            waited = time.monotonic() - began
            has_died = waited > 5 and not (self.cluster / "postmaster.pid").exists()
            if has_died or waited > START_SECONDS_MAX:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{self.cluster} does not answer: {done.stderr.strip()}; the end of {self.log}:\n{tail}")
            time.sleep(0.02)

    def wait_until_writable(self) -> None:
        """Until recovery has ended. Its control file says when to ask: to be asked all the time costs the server much."""
        while True:
            # A restored one says so too, until recovery begins.
            self._wait_until_in_production()
            if self.wait_for("select pg_is_in_recovery()") == "f":
                return
            time.sleep(0.02)

    def _wait_until_in_production(self) -> None:
        began = time.monotonic()
        while self._state() != IN_PRODUCTION:
            waited = time.monotonic() - began
            has_died = waited > 5 and not (self.cluster / "postmaster.pid").exists()
            if has_died or waited > START_SECONDS_MAX:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{self.cluster} does not end its recovery; the end of {self.log}:\n{tail}")
            time.sleep(0.02)

    def _state(self) -> int:
        """The cluster's state: behind its identifier and the versions of the control file and the catalogue."""
        with (self.cluster / "global" / "pg_control").open("rb") as control:
            return struct.unpack_from("=I", control.read(20), 16)[0]

    def child_cpu(self, name: str) -> Cpu:
        """What one of its own processes has used, with its children, as `cpu` counts it too."""
        for process in system.tree(self.postmaster())[1:]:
            if f": {name}" in system.command_line(process):
                return system.tree_cpu(process)
        return Cpu()

    def archiver_cpu(self) -> Cpu:
        """What archive_command has used."""
        return self.child_cpu("archiver")

    def bytes_read(self) -> int:
        """What it has got from read calls since it started."""
        return sum(system.bytes_read(process) for process in system.tree(self.postmaster()))

    def _psql(self, sql: str, database: str) -> subprocess.CompletedProcess[str]:
        argv = self.program("psql", "-d", database, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql)
        argv = system.as_server_user(argv)
        return subprocess.run(argv, capture_output=True, text=True, env=system.environment(), check=False)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
