"""Runs one command and measures it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lib import system
from lib.system import BenchError, Cpu, MachineTime

SAMPLES_PER_SECOND = 20
TIMEOUT_SECONDS = 3600


@dataclass
class Sample:
    """One measured run. Times are seconds, sizes bytes."""

    tool: str
    wall: float
    user: float
    system: float
    server_cpu: float = 0.0
    memory_sum: int = 0
    memory_max_process: int = 0
    noise_cpu: float = 0.0
    kernel_cpu: float = 0.0
    stolen_cpu: float = 0.0
    caches_dropped: bool = False
    # What was measured, where a part measures more than one thing: the first part of the figures' names.
    case: str = ""
    details: dict[str, float] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """All that the machine paid: the tool with its children, and the server."""
        return self.user + self.system + self.server_cpu

    @property
    def noise(self) -> float:
        """Processor time of everything else, as a share of the machine."""
        return max(0.0, self.noise_cpu + self.stolen_cpu) / (self.wall * system.CPUS)

    def as_json(self) -> dict:
        plain = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}
        plain["details"] = {key: round(value, 4) for key, value in self.details.items()}
        return {**plain, "cpu": round(self.cpu, 4), "noise": round(self.noise, 4)}


class Meter:
    """The processor time of the whole machine over a stretch of time, less that of known processes."""

    def __init__(self) -> None:
        self._machine = MachineTime.now()
        self._kernel = system.kernel_threads_cpu()
        self._own = self._own_cpu()

    @staticmethod
    def _own_cpu() -> float:
        """This program and all its children that have ended, the measured tool among them."""
        spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in spent)

    def finish(self, sample: Sample, running: float = 0.0) -> None:
        """Fills in the noise. `running`: what known processes used that have not ended or are not our children."""
        machine = MachineTime.now()
        sample.kernel_cpu = system.kernel_threads_cpu() - self._kernel
        sample.stolen_cpu = machine.stolen - self._machine.stolen
        known = self._own_cpu() - self._own + sample.kernel_cpu + running
        sample.noise_cpu = machine.busy - self._machine.busy - known


class Process:
    """A command that runs beside us, its memory watched."""

    def __init__(self, argv: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = Path(argv[0]).name
        self._log = log
        if not log.exists():
            # A server that a command starts writes there too.
            system.write_file(log, "")
        with log.open("ab") as output:
            output.write(f"$ {' '.join(argv)}\n".encode())
            output.flush()
            self._child = subprocess.Popen(
                system.as_server_user(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**system.environment(), **(environment or {})},
                cwd="/tmp",
                start_new_session=True,
            )
        self.pid = self._child.pid
        self.memory_sum = 0
        self.bytes_read = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._ended.wait(1 / SAMPLES_PER_SECOND):
            self.memory_sum = max(self.memory_sum, system.tree_resident_bytes(self.pid))

    def is_running(self) -> bool:
        """Without reaping it, as that would lose what it used."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop(self, with_signal: signal.Signals) -> None:
        os.kill(self.pid, with_signal)

    def kill(self) -> None:
        """For when something went wrong: it and all that it started."""
        if self._child.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.wait(expected=None)

    def wait(self, expected: int | None = 0) -> resource.struct_rusage:
        """Waits for it and all its children; what they used."""
        timer = threading.Timer(TIMEOUT_SECONDS, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            # Ended and not yet reaped, it has the sums of all its children that it waited for.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self.bytes_read = system.bytes_read(self.pid)
            _, status, usage = os.wait4(self.pid, 0)
        finally:
            timer.cancel()
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()
        self._watcher.join()
        if expected is not None and self._child.returncode != expected:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.name} ended with {self._child.returncode}; the end of {self._log}:\n{tail}")
        return usage


def run(argv: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    """Runs a command that is not measured, as the user who runs PostgreSQL; `environment` is set besides."""
    process = Process(argv, log, environment)
    try:
        process.wait()
    except BaseException:
        process.kill()
        raise


def measure(
    tool: str,
    argv: list[str],
    log: Path,
    server_cpu: Callable[[], Cpu] = Cpu,
    then: Callable[[], Cpu] | None = None,
    beside: Callable[[], Cpu] = Cpu,
) -> Sample:
    """Runs a command with a cold page cache and measures it.

    `server_cpu` says what the server has used so far, as it is nobody's child. `then` is what has to happen after the
    command until the clock stops; it returns what others used meanwhile. `beside` says what known processes have used
    so far that are neither the tool's nor noise.
    """
    dropped = system.drop_caches()
    system.wait_for_quiet()
    meter = Meter()
    server_before, beside_before = server_cpu(), beside()
    began = time.monotonic()
    process = Process(argv, log)
    try:
        usage = process.wait()
        command_wall = time.monotonic() - began
        more = then() if then else Cpu()
    except BaseException:
        process.kill()
        raise
    wall = time.monotonic() - began
    server = server_cpu() - server_before + more
    sample = Sample(
        tool=tool,
        wall=wall,
        user=usage.ru_utime,
        system=usage.ru_stime,
        server_cpu=server.total,
        memory_sum=max(process.memory_sum, usage.ru_maxrss * 1024),
        memory_max_process=usage.ru_maxrss * 1024,
        caches_dropped=dropped,
    )
    meter.finish(sample, running=server.total + (beside() - beside_before).total)
    sample.details["bytes_read"] = process.bytes_read
    if then:
        sample.details["command_wall"] = command_wall
    return sample
