"""Contestants in processes of their own that take turns: while one works, the others wait in the middle of their loop.

A contestant calls its gate at the end of each of its steps. The gate lets it run through while it warms up and while it
is its turn, counts and times, and otherwise blocks.
"""

import contextlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from peers.job import Job

WARM_UP = 2
"""Steps before the first turn; one more is left out at the start of each turn."""


class ClosedError(Exception):
    """The parent wants no more steps."""


class Opened(NamedTuple):
    """What a contestant says when it is warm: trained parameters, seconds from the order to here, and remarks."""

    trained: int
    seconds: float
    remark: str


class Gate:
    """Stands at the end of each step of a contestant.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self.trained = 0
        self.remark = ""
        self._connection = connection
        self._opened = time.perf_counter()
        self._turns = self._take_turns()
        next(self._turns)

    def __call__(self, images: int) -> None:
        """Count a step of so many images.

        Raises:
            ClosedError: it was the last.
        """
        self._turns.send(images)

    def _take_turns(self) -> Generator[None, int, None]:
        for _ in range(WARM_UP):
            yield
        self._connection.send(Opened(self.trained, time.perf_counter() - self._opened, self.remark))
        while True:
            order = self._ordered()
            if order is None:
                raise ClosedError("no more steps")
            steps, seconds = order
            yield
            start, done, images = _now(), 0, 0
            while done < steps or time.perf_counter() - start < seconds:
                images += yield
                done += 1
            elapsed = _now() - start
            _wait_for_loaders()
            self._connection.send(images / elapsed)

    def _ordered(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return None  # the parent is gone


class Contestant:
    """The parent's end of one contestant.

    Args:
        title: for tables and messages.
        module: of this package; its functions take a job, a gate and the options.
        job: its `threads` hold for the whole life of the process.
        options: plain values.
    """

    def __init__(self, title: str, module: str, job: Job, **options: object) -> None:
        self.title = title
        self._connection, theirs = multiprocessing.Pipe()
        number = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "peers.serve", str(number), module, str(job.threads), json.dumps(options)],
            cwd=Path(__file__).parents[1],
            pass_fds=[number],
        )
        theirs.close()

    def open(self, function: str, job: Job) -> Opened:
        """Start a loop and return when it is warm."""
        self._connection.send((function, job))
        return self._receive()

    def turn(self, *, steps: int, seconds: float) -> float:
        """Run at least so many steps and seconds, and return images per second."""
        self._connection.send((steps, seconds))
        return self._receive()

    def close(self) -> float:
        """End the loop and return the process's peak memory within it, in MB, without its loader processes."""
        self._connection.send(None)
        return self._receive()

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.wait()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.title}: its process ended with exit code {self._process.wait()}") from None
        if isinstance(answer, str):
            raise SystemExit(f"{self.title} failed:\n{answer}")
        return answer


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _wait_for_loaders(longest_s: float = 10.0) -> None:
    """Wait until loader processes have filled their queues: they would work in the next contestant's turn."""
    busy, end = -1.0, time.monotonic() + longest_s
    while time.monotonic() < end and (children := psutil.Process().children(recursive=True)):
        now = 0.0
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                now += sum(child.cpu_times()[:2])
        if now == busy:
            return
        busy = now
        time.sleep(0.1)
