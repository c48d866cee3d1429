"""What the machine is, and what its processors have been doing."""

from __future__ import annotations

import mmap
import os
import platform
import pwd
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CPUS = os.cpu_count() or 1
# More than a tool and what it reads take at first.
TOUCHED_BYTES = 2 << 30
IS_ROOT = os.geteuid() == 0
# PostgreSQL refuses to run as root.
SERVER_USER = "postgres" if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name

MIB = 1 << 20

# Whether to wait for a quiet machine.
is_patient = True


class BenchError(Exception):
    """The benchmark cannot go on; its text is for the person who runs it."""


def as_server_user(argv: list[str]) -> list[str]:
    """The command as the user who runs PostgreSQL. `setpriv` replaces itself, so the process id stays that of the tool."""
    if not IS_ROOT:
        return argv
    return ["setpriv", f"--reuid={SERVER_USER}", f"--regid={SERVER_USER}", "--clear-groups", *argv]


def environment() -> dict[str, str]:
    """No setting of the person who runs this may change what is measured."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": "/tmp", "LC_ALL": "C", "TZ": "UTC", "PGTZ": "UTC"}


def make_directory(path: Path) -> Path:
    """An empty or existing directory that the user who runs PostgreSQL may write."""
    path.mkdir(parents=True, exist_ok=True)
    if IS_ROOT:
        shutil.chown(path, SERVER_USER, SERVER_USER)
    path.chmod(0o700)
    return path


def make_work_directory(path: Path) -> Path:
    """As `make_directory`, and says if that user cannot get there."""
    make_directory(path)
    test = subprocess.run(as_server_user(["test", "-w", str(path)]), env=environment(), check=False)
    if test.returncode != 0:
        raise BenchError(f"user {SERVER_USER} cannot reach {path}: choose another directory with --work")
    return path


def write_file(path: Path, text: str) -> None:
    path.write_text(text)
    if IS_ROOT:
        shutil.chown(path, SERVER_USER, SERVER_USER)
    path.chmod(0o600)


def remove(path: Path) -> None:
    """Removes a file or tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def apparent_bytes(path: Path, is_linked: bool = False) -> int:
    """As `du --apparent-size` counts, without directories. `is_linked`: files may have more than one name there."""
    found = (os.lstat(os.path.join(directory, name)) for directory, _, names in os.walk(path) for name in names)
    if is_linked:
        return sum({file.st_ino: file.st_size for file in found}.values())
    return sum(file.st_size for file in found)


def check_disk(path: Path, needed: float, what: str) -> None:
    """In time, not when it is full."""
    free = shutil.disk_usage(path).free
    if free < needed:
        gib = 1 << 30
        raise BenchError(f"{what} needs {needed / gib:.0f} GiB in {path}, where {free / gib:.0f} GiB are free")


def drop_caches() -> bool:
    """Writes everything out and empties the page cache. Only root can: whether it was done is recorded."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def command_output(argv: list[str]) -> str:
    """What a command prints, or nothing: for versions and descriptions."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def describe(work: Path) -> dict[str, str]:
    """The machine, for the report."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    release = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return {
        "processor": f"{CPUS} x {model.group(1) if model else platform.machine()}",
        "memory": f"{int(memory.group(1)) / (1 << 20):.0f} GiB" if memory else "unknown",
        "system": f"{release.group(1) if release else 'Linux'}, Linux {platform.release()}",
        "disk": command_output(["findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "--target", str(work)]) or "unknown",
    }


@dataclass(frozen=True)
class Cpu:
    """Seconds of processor time."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.user + other.user, self.system + other.system)

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user - other.user, self.system - other.system)


def _stat(process: int | str) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None if the process has gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        try:
            # A child belongs to the thread that made it.
            for thread in os.listdir(f"/proc/{process}/task"):
                waiting += map(int, Path(f"/proc/{process}/task/{thread}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def tree_cpu(root: int) -> Cpu:
    """What a process, its descendants, and those descendants that ended and were waited for have used."""
    total = Cpu()
    for process in tree(root):
        fields = _stat(process)
        if fields:
            user, system, waited_user, waited_system = (int(field) / TICKS for field in fields[11:15])
            total += Cpu(user + waited_user, system + waited_system)
    return total


def tree_resident_bytes(root: int) -> int:
    """Sum over the tree; memory that processes share is counted in each."""
    total = 0
    for process in tree(root):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
    return total


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(process: int) -> str:
    """Its arguments, or what it says instead."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def bytes_read(process: int) -> int:
    """What a process and the children that it waited for have read by calls that read; whether from disk or cache."""
    try:
        counters = Path(f"/proc/{process}/io").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    found = re.search(r"^rchar: (\d+)", counters, re.MULTILINE)
    return int(found.group(1)) if found else 0


def kernel_threads_cpu() -> float:
    """Writeback, disk interrupts handled by threads and the like: not another load, but not any process's either."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(name)) and (fields[1] == "2" or name == "2"):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


@dataclass(frozen=True)
class MachineTime:
    """Processor seconds since the machine started."""

    busy: float
    stolen: float

    @staticmethod
    def now() -> MachineTime:
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(field) / TICKS for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        return MachineTime(user + nice + system + irq + softirq, steal)


def wait_for_quiet(seconds_max: float = 15.0) -> None:
    """Waits for a second in which the machine is nearly idle. If none comes, the noise column will tell."""
    deadline = time.monotonic() + seconds_max
    while is_patient and time.monotonic() < deadline:
        before = MachineTime.now().busy
        time.sleep(1)
        if MachineTime.now().busy - before < 0.1 * CPUS:
            break
    _touch(TOUCHED_BYTES)


def _touch(size: int) -> None:
    """A virtual machine gives memory that becomes free back to its host. Whoever comes first would wait for it.

    By a process of its own: what this one ever had counts as the highest that its children had.
    """
    if child := os.fork():
        os.waitpid(child, 0)
        return
    memory = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
    os._exit(0)
