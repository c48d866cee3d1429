"""The tools that are compared: how each is set up, backs up, restores, and is cleaned up after."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from lib import measure, system
from lib.measure import Process
from lib.postgres import Server
from lib.system import BenchError

PARALLEL = 2
PEER_LEVEL = 3
ZSTD = f"zstd -q -c -{PEER_LEVEL} -T{PARALLEL}"
STANZA = "chat"

FULL, DIFFERENTIAL, INCREMENTAL = "full", "differential", "incremental"


class BackupTool(ABC):
    """A tool that takes backups into a directory of its own."""

    name: str
    version: str
    # What the server needs to be started with.
    server_settings: ClassVar[dict[str, str]] = {}
    # The server reads the files and sends them.
    reads_in_server = False
    kinds_made: tuple[str, ...] = (FULL, DIFFERENTIAL, INCREMENTAL)

    # Whether backups begin with a checkpoint at once, and not with one that is spread over its usual time.
    hurries = True

    def __init__(self, work: Path, directory: str = "") -> None:
        self.directory = work / (directory or self.name)
        self.repository = self.directory / "repository"
        self.log = work / "log" / f"{self.directory.name}.log"
        # Of this run: what an earlier one left may be of another cluster or program.
        self.has_backup = False

    def prepare(self, server: Server) -> None:
        """Makes an empty repository. Not measured."""
        self.remove()
        system.make_directory(self.directory)
        system.make_directory(self.repository)
        self.set_up(server)

    @abstractmethod
    def set_up(self, server: Server) -> None: ...

    @abstractmethod
    def backup_command(self, server: Server, kind: str = FULL) -> list[str]: ...

    def kinds(self) -> list[str]:
        """Of which kind each backup is, from the oldest on: a tool may have found that it has to read everything."""
        raise BenchError(f"the benchmark does not ask {self.name} for its backups")

    def restore_command(self, to: Path) -> list[str]:
        raise BenchError(f"the benchmark does not restore with {self.name}")

    def restore_backup_command(self, to: Path) -> list[str]:
        """Restores to the end of the newest backup, and replays none of the log that came after."""
        return self.restore_command(to)

    def delta_command(self, to: Path) -> list[str]:
        """Restores over an old data directory."""
        raise BenchError(f"the benchmark does not restore over something with {self.name}")

    def follow(self, server: Server) -> Process | None:
        """Starts what receives the log all the time, if it needs that."""
        return None

    def has_log(self, segment: str) -> bool:
        """Whether the log up to the end of that file is in the repository, of what `follow` started."""
        return True

    def packed_bytes(self) -> int | None:
        """What the last backup would take if it were compressed; of a tool that does not do that itself."""
        return None

    def tidy(self) -> None:
        """Off the clock, after a measured backup: drops what nobody needs and the disk has no room for."""

    def stored_bytes(self) -> int:
        return system.apparent_bytes(self.repository)

    def remove(self) -> None:
        self.has_backup = False
        system.remove(self.directory)


class Holdfast(BackupTool):
    """Ours: the defaults but for the number of threads."""

    name = "holdfast"

    def __init__(self, work: Path, program: Path, directory: str = "", slot: str = "") -> None:
        super().__init__(work, directory)
        self.program = program
        self._slot = slot
        self.version = system.command_output([str(program), "--version"]).removeprefix("holdfast ")
        if not self.version:
            raise BenchError(f"{program} does not run; build it with `cargo build --release`, or give --holdfast")
        self.config = self.directory / "holdfast.toml"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), "--config", str(self.config), "--quiet", *arguments]

    def set_up(self, server: Server) -> None:
        slot = f'slot = "{self._slot}"\n' if self._slot else ""
        system.write_file(
            self.config,
            f'[repository.main]\npath = "{self.repository}"\nidentity_file = "{self.directory}/identity.txt"\n'
            f'[source.chat]\nconnection = "{server.conninfo()}"\n{slot}',
        )
        measure.run(self.command("init", "--new-identity", str(self.directory / "identity.txt")), self.log)

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        hurry = ["--fast"] if self.hurries else []
        return self.command("backup", "chat", "--type", kind, *hurry, "--parallel", str(PARALLEL))

    def _snapshots(self) -> list[dict]:
        listed = system.command_output(system.as_server_user(self.command("list", "chat", "--json")))
        if not listed:
            raise BenchError(f"`holdfast list` says nothing; its configuration is {self.config}")
        return json.loads(listed)["sources"][0]["snapshots"]

    def kinds(self) -> list[str]:
        return [snapshot["kind"] for snapshot in self._snapshots()]

    def restore_command(self, to: Path) -> list[str]:
        return self.command("restore", "chat", "--to", str(to), "--parallel", str(PARALLEL))

    def restore_backup_command(self, to: Path) -> list[str]:
        return [*self.restore_command(to), "--snapshot", self._snapshots()[-1]["id"]]

    def delta_command(self, to: Path) -> list[str]:
        return [*self.restore_command(to), "--delta"]


class HoldfastThree(Holdfast):
    """The same, into three repositories at once."""

    def set_up(self, server: Server) -> None:
        identity = f"{self.directory}/identity.txt"
        tables = [
            f'[repository.{name}]\npath = "{self.repository / name}"\nidentity_file = "{identity}"\n'
            for name in ("main", "second", "third")
        ]
        source = f'[source.chat]\nconnection = "{server.conninfo()}"\nrepository = "main"\n'
        system.write_file(self.config, "".join(tables) + source + 'copies = ["second", "third"]\n')
        measure.run(self.command("init", "main", "--new-identity", identity), self.log)
        for name in ("second", "third"):
            measure.run(self.command("init", name, "--like", "main"), self.log)


class HoldfastS3(Holdfast):
    """The same, into a bucket."""

    def __init__(self, work: Path, program: Path, place: dict) -> None:
        super().__init__(work, program, "holdfast_s3")
        self._place = place

    def set_up(self, server: Server) -> None:
        credentials = self.directory / "credentials.toml"
        system.write_file(
            credentials,
            f'access_key_id = "{self._place["access_key"]}"\nsecret_access_key = "{self._place["secret_key"]}"\n',
        )
        credentials.chmod(0o600)
        identity = f"{self.directory}/identity.txt"
        system.write_file(
            self.config,
            f'[repository.main]\nurl = "s3://holdfast/chat"\nendpoint = "{self._place["endpoint"]}"\n'
            f'credentials_file = "{credentials}"\nidentity_file = "{identity}"\n'
            f'[source.chat]\nconnection = "{server.conninfo()}"\n',
        )
        measure.run(self.command("init", "--new-identity", identity), self.log)

    def stored_bytes(self) -> int:
        return self._snapshots()[-1]["stored_bytes"]


class Restic:
    """Of a stopped cluster's files, with its defaults."""

    name = "restic"

    def __init__(self, work: Path, cluster: Path, place: dict) -> None:
        self.directory = work / "restic"
        self.log = work / "log" / "restic.log"
        self._cluster = cluster
        system.remove(self.directory)
        system.make_directory(self.directory)
        system.write_file(self.directory / "password", secrets.token_hex(16))
        environment = {
            "AWS_ACCESS_KEY_ID": place["access_key"],
            "AWS_SECRET_ACCESS_KEY": place["secret_key"],
            "RESTIC_REPOSITORY": f"s3:{place['endpoint']}/restic",
            "RESTIC_PASSWORD_FILE": str(self.directory / "password"),
            "RESTIC_CACHE_DIR": str(self.directory / "cache"),
        }
        self._prefix = ["env", *(f"{name}={value}" for name, value in environment.items()), "restic", "--quiet"]

    @staticmethod
    def is_there() -> bool:
        return shutil.which("restic") is not None

    @staticmethod
    def version() -> str:
        return system.command_output(["restic", "version"]).split()[1]

    def make(self) -> None:
        measure.run([*self._prefix, "init"], self.log)

    def backup_command(self) -> list[str]:
        return [*self._prefix, "backup", str(self._cluster)]

    def restore_command(self, to: Path) -> list[str]:
        return [*self._prefix, "restore", "latest", "--target", str(to)]

    def remove(self) -> None:
        system.remove(self.directory)


class PgBackRest(BackupTool):
    """Encrypted, zstd level 3, block and bundle storage, two processes; the log by its archive_command."""

    name = "pgbackrest"
    _KINDS: ClassVar = {FULL: "full", DIFFERENTIAL: "diff", INCREMENTAL: "incr"}

    def __init__(self, work: Path, program: Path, workload: Path) -> None:
        super().__init__(work)
        self.program = program
        self.version = system.command_output([str(program), "version"]).removeprefix("pgBackRest ")
        if not self.version:
            raise BenchError(f"{program} does not run; install Debian's package `pgbackrest`, or set PGBACKREST")
        self._workload = workload
        self.config = self.directory / "pgbackrest.conf"
        self.server_settings = {
            "archive_mode": "on",
            "archive_command": f"{program} --config={self.config} --stanza={STANZA} archive-push %p",
        }

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), f"--config={self.config}", f"--stanza={STANZA}", *arguments]

    def set_up(self, server: Server) -> None:
        options = {
            "repo1-path": self.repository,
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": secrets.token_hex(32),
            "repo1-bundle": "y",
            "repo1-block": "y",
            "repo1-retention-full": 2,
            "compress-type": "zst",
            "compress-level": PEER_LEVEL,
            "process-max": PARALLEL,
            "start-fast": "y",
            "log-level-file": "off",
            "log-level-console": "warn",
            "lock-path": self.directory / "lock",
            "spool-path": self.directory / "spool",
        }
        if _numbers(self.version) < (2, 46):
            del options["repo1-block"]
        lines = ["[global]", *(f"{name}={value}" for name, value in options.items())]
        lines += [f"[{STANZA}]", f"pg1-path={self._workload}", f"pg1-socket-path={server.socket}"]
        lines += [f"pg1-port={server.port}", "pg1-user=postgres"]
        system.write_file(self.config, "\n".join(lines) + "\n")
        measure.run(self.command("stanza-create"), self.log)

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        hurry = [] if self.hurries else ["--no-start-fast"]
        return self.command(f"--type={self._KINDS[kind]}", *hurry, "backup")

    def kinds(self) -> list[str]:
        told = system.command_output(system.as_server_user(self.command("--output=json", "info")))
        if not told:
            raise BenchError(f"`pgbackrest info` says nothing; its configuration is {self.config}")
        by_name = {name: kind for kind, name in self._KINDS.items()}
        return [by_name[backup["type"]] for backup in json.loads(told)[0]["backup"]]

    def restore_command(self, to: Path) -> list[str]:
        # It does not make the directory itself.
        system.make_directory(to)
        return self.command(f"--pg1-path={to}", "restore")

    def restore_backup_command(self, to: Path) -> list[str]:
        system.make_directory(to)
        return self.command(f"--pg1-path={to}", "--type=immediate", "--target-action=promote", "restore")

    def delta_command(self, to: Path) -> list[str]:
        return self.command(f"--pg1-path={to}", "--delta", "restore")


class PgBaseBackup(BackupTool):
    """A compressed tar, not encrypted: the client compresses with two threads."""

    name = "pg_basebackup"

    def __init__(self, work: Path, programs: Path) -> None:
        super().__init__(work)
        self.version = _last_version([str(programs / "pg_basebackup"), "--version"])

    def set_up(self, server: Server) -> None:
        """Needs nothing."""

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        if kind != FULL:
            raise BenchError(f"the benchmark takes only full backups with {self.name}")
        compress = f"--compress=client-zstd:level={PEER_LEVEL},workers={PARALLEL}"
        return server.program("pg_basebackup", "-D", str(self.repository), "-Ft", "-X", "stream", "-c", "fast", compress)


class PlainZstd(BackupTool):
    """No backup: a tar of the database's directory through zstd, which is what its bytes cost without more."""

    name = "zstd"

    def __init__(self, work: Path, cluster: Path) -> None:
        super().__init__(work)
        if not shutil.which("zstd"):
            raise BenchError("no zstd: install Debian's package `zstd`")
        self.version = _last_version(["zstd", "--version"])
        self._cluster = cluster

    def set_up(self, server: Server) -> None:
        """Needs nothing."""

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        to = self.repository / "cluster.tar.zst"
        # Without the log, which the backups have little of.
        return [
            "bash",
            "-c",
            f"set -o pipefail; tar -c --exclude=pg_wal -C '{self._cluster}' . | {ZSTD} >'{to}'; sync '{to}'",
        ]


class PgIncremental(BackupTool):
    """PostgreSQL's own from version 17 on, with log summaries: plain files, as pg_combinebackup wants them.

    Neither compressed nor encrypted.
    """

    name = "pg_basebackup"
    server_settings: ClassVar[dict[str, str]] = {"summarize_wal": "on"}
    reads_in_server = True
    VERSION_MIN = 17

    def __init__(self, work: Path, programs: Path) -> None:
        super().__init__(work, "pg-incremental")
        self._programs = programs
        self.version = _last_version([str(programs / "pg_basebackup"), "--version"])
        # Each with the one that it is the difference to.
        self._made: list[tuple[Path, Path | None]] = []

    def set_up(self, server: Server) -> None:
        self._made = []

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        to = self.repository / f"{len(self._made):03}-{kind}"
        basis = {FULL: None, DIFFERENTIAL: self._last_full, INCREMENTAL: lambda: self._made[-1][0]}[kind]
        of = basis() if basis else None
        self._made.append((to, of))
        incremental = [f"--incremental={of}/backup_manifest"] if of else []
        return server.program("pg_basebackup", "-D", str(to), "-Fp", "-X", "stream", "-c", "fast", *incremental)

    def _last_full(self) -> Path:
        return [path for path, basis in self._made if basis is None][-1]

    def kinds(self) -> list[str]:
        """As the backups' labels say: the tool fails if it cannot make what it was told to."""
        return [
            path.name.partition("-")[2] if "INCREMENTAL FROM LSN" in (path / "backup_label").read_text() else FULL
            for path, _ in self._made
        ]

    def restore_command(self, to: Path) -> list[str]:
        chain: list[Path] = []
        at: Path | None = self._made[-1][0]
        while at:
            chain.insert(0, at)
            at = dict(self._made)[at]
        return [str(self._programs / "pg_combinebackup"), *map(str, chain), "-o", str(to)]

    def packed_bytes(self) -> int:
        last = self._made[-1][0]
        packing = f"set -o pipefail; tar -c -C '{last.parent}' '{last.name}' | {ZSTD} | wc -c"
        return int(subprocess.run(["bash", "-c", packing], capture_output=True, check=True).stdout)


class Barman(BackupTool):
    """By rsync on the same machine; files that have not changed are hard links to those of the backup before.

    Neither compressed nor encrypted. It has no differential.
    """

    name = "barman"
    kinds_made = (FULL, INCREMENTAL)
    slot = "barman"

    def __init__(self, work: Path, programs: Path) -> None:
        super().__init__(work)
        self._programs = programs
        self.version = _last_version(["barman", "--version"])
        self.config = self.directory / "barman.conf"
        self._is_tidied = False

    @staticmethod
    def is_there() -> bool:
        return bool(shutil.which("barman") and shutil.which("rsync"))

    def command(self, *arguments: str) -> list[str]:
        return ["barman", "-c", str(self.config), "-q", *arguments]

    def set_up(self, server: Server) -> None:
        self._is_tidied = False
        options = {
            "barman_home": self.repository,
            "barman_user": system.SERVER_USER,
            "log_file": self.directory / "barman.log",
            "path_prefix": self._programs,
        }
        of_server = {
            "description": "chat",
            "conninfo": server.conninfo(),
            "streaming_conninfo": server.conninfo(),
            "backup_method": "local-rsync",
            "reuse_backup": "link",
            "parallel_jobs": PARALLEL,
            "immediate_checkpoint": "true",
            "streaming_archiver": "on",
            "slot_name": self.slot,
        }
        lines = ["[barman]", *(f"{name} = {value}" for name, value in options.items())]
        lines += [f"[{STANZA}]", *(f"{name} = {value}" for name, value in of_server.items())]
        system.write_file(self.config, "\n".join(lines) + "\n")

    def follow(self, server: Server) -> Process:
        measure.run(self.command("receive-wal", "--create-slot", STANZA), self.log)
        process = Process(self.command("receive-wal", STANZA), self.log)
        streams = f"select count(*) from pg_replication_slots where slot_name = '{self.slot}' and active"
        deadline = time.monotonic() + 30
        while server.query(streams) != "1":
            if not process.is_running() or time.monotonic() > deadline:
                process.kill()
                raise BenchError(f"{self.name} does not stream; see {self.log}")
            time.sleep(0.1)
        return process

    def has_log(self, segment: str) -> bool:
        if (self.repository / STANZA / "streaming" / segment).exists():
            measure.run(self.command("archive-wal", STANZA), self.log)
        return any((self.repository / STANZA / "wals").glob(f"*/{segment}"))

    def backup_command(self, server: Server, kind: str = FULL) -> list[str]:
        # Nothing to link to: the first copies everything.
        return self.command("backup", STANZA)

    def kinds(self) -> list[str]:
        """Of those that are there: the first of all copies everything, all others link to the one before."""
        return [INCREMENTAL if self._is_tidied else FULL] + [INCREMENTAL] * (len(self._backups()) - 1)

    def _backups(self) -> list[Path]:
        return sorted((self.repository / STANZA / "base").iterdir())

    def tidy(self) -> None:
        """Each may be a copy of nearly everything: it keeps the newest."""
        for old in self._backups()[:-1]:
            measure.run(self.command("delete", STANZA, old.name), self.log)
            self._is_tidied = True

    def restore_command(self, to: Path) -> list[str]:
        return self.command("recover", STANZA, "latest", str(to))

    def stored_bytes(self) -> int:
        """Each file once, however many links it has. Without the log, as it deletes what is older than the backups."""
        return system.apparent_bytes(self.repository / STANZA / "base", is_linked=True)


class Receiver(ABC):
    """A tool that streams the log of a server until it is told to stop."""

    name: str
    version: str
    slot: str

    @abstractmethod
    def start(self, server: Server) -> Process:
        """Makes what it needs, and starts it."""

    @abstractmethod
    def remove(self) -> None: ...

    def wait_until_streaming(self, server: Server, process: Process) -> None:
        deadline = time.monotonic() + 30
        while server.query("select count(*) from pg_stat_replication where state = 'streaming'") != "1":
            if not process.is_running() or time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not stream; see its log in the work directory")
            time.sleep(0.1)

    def stop(self, process: Process) -> system.Cpu:
        """Stops it as its manual says; what it has used."""
        process.stop(signal.SIGINT)
        usage = process.wait()
        return system.Cpu(usage.ru_utime, usage.ru_stime)

    def drop_slot(self, server: Server) -> None:
        """The slot goes with the server's memory of it, so that no log is kept. The server frees it a little late."""
        gone = f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{self.slot}'"
        for _ in range(100):
            if server.query(f"select active from pg_replication_slots where slot_name = '{self.slot}'") != "t":
                break
            time.sleep(0.1)
        server.query(gone)


class HoldfastReceiver(Receiver):
    """Compressed, encrypted, durable in the repository every half second."""

    name = "holdfast"
    slot = "holdfast_chat"

    def __init__(self, holdfast: Holdfast) -> None:
        self._holdfast = holdfast
        self.version = holdfast.version

    def start(self, server: Server) -> Process:
        self._holdfast.prepare(server)
        return Process(self._holdfast.command("wal", "receive", "chat", "--create-slot"), self._holdfast.log)

    def remove(self) -> None:
        self._holdfast.remove()


class PgReceiveWal(Receiver):
    """PostgreSQL's own: the log as it is, in files."""

    name = "pg_receivewal"
    slot = "bench"

    def __init__(self, work: Path, programs: Path) -> None:
        self.programs = programs
        self.directory = work / self.name
        self._log = work / "log" / f"{self.name}.log"
        self.version = _last_version([str(programs / "pg_receivewal"), "--version"])

    def start(self, server: Server) -> Process:
        self.remove()
        system.make_directory(self.directory)
        common = ["-D", str(self.directory), "--slot", self.slot]
        measure.run(server.program("pg_receivewal", *common, "--create-slot"), self._log)
        # Once a second it says where it is: by default every ten, which would look like log that it is behind.
        options = ["--no-loop", "--compress=none", "--status-interval=1"]
        return Process(server.program("pg_receivewal", *common, *options), self._log)

    def remove(self) -> None:
        system.remove(self.directory)


def _last_version(argv: list[str]) -> str:
    found = re.search(r"\d+(\.\d+)+", system.command_output(argv))
    return found.group(0) if found else "unknown"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
