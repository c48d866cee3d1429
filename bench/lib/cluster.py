"""The workload: an instant-messaging platform's database, made by the lab or given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lib import measure, postgres, system
from lib.postgres import Server
from lib.system import BenchError

# The load is not what is measured: as fast as it goes, and made durable at the end.
LOAD_SETTINGS = {
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "1GB",
    "work_mem": "256MB",
    "maintenance_work_mem": "1GB",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "1",
}

DATABASE = "im"
# A file beside a made cluster: the load has ended.
DONE = "complete"


@dataclass(frozen=True)
class Probe:
    """The first query on a restored cluster, and what it has to answer."""

    sql: str
    answer: str


class Workload:
    """A stopped cluster that backups are taken of. Only the benchmark starts it, and always stops it cleanly."""

    def __init__(self, cluster: Path, work: Path, socket: Path, port: int) -> None:
        self.cluster = cluster
        self.port = port
        self._socket = socket
        self._log = work / "log"
        self._probe: Probe | None = None
        if not (cluster / "PG_VERSION").exists():
            raise BenchError(f"{cluster} is no data directory")
        if not postgres.is_clean(cluster):
            raise BenchError(f"{cluster} was not shut down cleanly, or a server runs there")

    @cached_property
    def size_gib(self) -> float:
        return round(system.apparent_bytes(self.cluster) / (1 << 30), 2)

    def server(self, settings: dict[str, str] | None = None) -> Server:
        return Server(self.cluster, self._socket, self.port, self._log / "server.log", settings)

    def restored(self, directory: Path) -> Server:
        """The server on a restored copy; what the tool wrote into its settings holds but for these."""
        server = Server(directory, self._socket, self.port + 1, self._log / "restored.log")
        server.abandon()
        return server

    def probe(self) -> Probe:
        if self._probe is None:
            with self.server() as server:
                self._probe = probe(server)
        return self._probe


def probe(server: Server) -> Probe:
    """Counts the smallest table and looks up one message."""
    small = server.query(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
        " and reltuples >= 1000 order by relpages limit 1",
        DATABASE,
    )
    middle = server.query("select max(id) / 2 from messages", DATABASE)
    sql = f"select (select count(*) from {small}), (select md5(m::text) from messages m where id = {middle})"
    return Probe(sql, server.query(sql, DATABASE))


def made(size_gib: float, work: Path) -> Path | None:
    """That one, if it is there and whole."""
    cluster = work / f"cluster-{size_gib:g}gib" / "data"
    return cluster if (cluster.parent / DONE).exists() else None


@contextmanager
def borrowed(cluster: Path) -> Iterator[None]:
    """Work on a made cluster itself: it is whole again only if that ended well."""
    (cluster.parent / DONE).unlink()
    yield
    if not postgres.is_clean(cluster):
        raise BenchError(f"{cluster} was not shut down cleanly")
    (cluster.parent / DONE).touch()


def make(lab: Path, size_gib: float, work: Path, socket: Path, port: int) -> Path:
    """The lab's data set of that size; made once and kept in the work directory."""
    if there := made(size_gib, work):
        return there
    cluster = work / f"cluster-{size_gib:g}gib" / "data"
    system.remove(cluster.parent)
    print(f"making a workload of {size_gib:g} GiB in {cluster}", flush=True)
    system.make_directory(cluster.parent)
    log = work / "log" / "load.log"
    postgres.initialise(cluster, log)
    with Server(cluster, socket, port, log, LOAD_SETTINGS) as server:
        size_mib = max(1, round(size_gib * 1024))
        measure.run([str(lab), "create", "--conninfo", server.conninfo(DATABASE), "--size-mib", str(size_mib)], log)
        server.query("vacuum (freeze, analyze)", DATABASE)
        server.query("checkpoint")
    system.drop_caches()
    (cluster.parent / DONE).touch()
    return cluster
