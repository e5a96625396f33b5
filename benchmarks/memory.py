"""Memory of a process and of those it started, watched while something runs; Linux only."""

import threading
from pathlib import Path

import psutil


class PeakMemory:
    """Watches how much memory a process and its largest child have of their own: mapped files do not count.

    Attributes:
        own_mb: most that the process had.
        child_mb: most that any one of its children had that it shares with no other process.

    Args:
        process: its number; None: this one.
        interval_s: between two looks.
    """

    def __init__(self, process: int | None = None, *, interval_s: float = 0.05) -> None:
        self.own_mb = self.child_mb = 0.0
        self._process = psutil.Process(process)
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        self.own_mb = max(self.own_mb, _kilobytes(self._process.pid, "status", "RssAnon:") / 1024)
        try:
            children = self._process.children(recursive=True)
        except psutil.NoSuchProcess:  # it has ended
            return
        for child in children:
            self.child_mb = max(self.child_mb, _kilobytes(child.pid, "smaps_rollup", "Private_Dirty:") / 1024)


def _kilobytes(process: int, file: str, name: str) -> float:
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)
    except (OSError, ValueError):  # it has just ended
        return 0.0
