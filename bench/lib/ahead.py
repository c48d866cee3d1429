"""What fetches the log while a server recovers."""

from __future__ import annotations

import os
import signal
import threading
import time

from lib import measure, system
from lib.system import Cpu
from lib.tools import Holdfast


class AheadWatcher:
    """The processor time of the processes that fetch log ahead: nobody's children, so it is looked at as they run."""

    def __init__(self, holdfast: Holdfast) -> None:
        self._mark = str(holdfast.config)
        self._used: dict[int, Cpu] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._ended.wait(1 / measure.SAMPLES_PER_SECOND):
            for process in system.processes():
                line = system.command_line(process)
                if self._mark in line and " wal prefetch " in line:
                    self._used[process] = system.tree_cpu(process)

    def kill(self) -> None:
        """They go on for a while after the server has ended, and write where it was."""
        for process in self._used:
            line = system.command_line(process)
            if self._mark in line and " wal prefetch " in line:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                while system.command_line(process) == line:
                    time.sleep(0.01)

    def finish(self) -> Cpu:
        self._ended.set()
        self._watcher.join()
        return sum(self._used.values(), Cpu())
