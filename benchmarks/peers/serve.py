"""The process of one contestant; `peers.gate.Contestant` starts it."""

import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from peers.gate import ClosedError, Gate


def main() -> None:
    """Run one loop after another, as the parent orders them."""
    number, module, threads, options = sys.argv[1:]
    connection = Connection(int(number))
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")  # those of libraries about each other would stand in the table
    try:
        while True:
            function, job = connection.recv()
            run = getattr(importlib.import_module(f"peers.{module}"), function)
            reset_peak()
            try:
                run(job, Gate(connection), **json.loads(options))
            except ClosedError:
                connection.send(peak_mb())
    except (EOFError, ConnectionError, KeyboardInterrupt):
        os._exit(0)  # the parent is gone, or wants no more
    except BaseException:
        connection.send(traceback.format_exc())
        os._exit(1)


def reset_peak() -> None:
    """Forget the peak of the loops before; where the system cannot, it is of the whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Return the peak memory of this process in MB; where the system does not know it, what is used now."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("VmHWM"))
    except OSError:
        return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    main()
