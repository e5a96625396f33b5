"""Work on files that may end or block the process that reads them: done elsewhere, under limits, in order."""

import functools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from loky import get_reusable_executor

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8
"""Items that one process gets at a time."""

IDLE_SECONDS = 30
"""How long processes wait for more work; the next call finds them warm."""


@dataclass(frozen=True)
class Limits:
    """What one item may take; a process that takes more is ended.

    Attributes:
        memory_mb: address space of the process.
        seconds: time per item.
    """

    memory_mb: int = 8192
    seconds: float = 120.0


def isolated(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    lost: Callable[[Item], Result],
    workers: int,
    limits: Limits = Limits(),
) -> Iterator[Result]:
    """Apply a function to every item in other processes, and yield the results in order.

    Use up or close one such iterator before the next is begun: they share their processes.

    Native decoders can crash, hang or take any amount of memory on a damaged file. Here that ends a process which holds
    nothing, the item is named, and the others go on.

    Args:
        function: importable by name; it and the items are sent to other processes.
        items: what to apply it to.
        lost: the result for an item that ended its process.
        workers: number of processes, at least 1.
        limits: per process and item.

    Yields:
        One result per item.
    """
    done = 0
    while done < len(items):
        try:
            for results in _in_chunks(function, items[done:], workers, limits):
                done += len(results)
                yield from results
        except BrokenProcessPool:  # some item ended its process: the next few are tried one by one
            for item in items[done : done + CHUNK]:
                done += 1
                yield _alone(function, item, lost, workers, limits)


def _in_chunks(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, limits: Limits
) -> Iterator[list[Result]]:
    waiting: list[Future[list[Result]]] = []
    apply = functools.partial(_apply, function, limits.seconds)
    pool = _pool(workers, limits)
    try:
        for start in range(0, len(items), CHUNK):
            waiting.append(pool.submit(apply, items[start : start + CHUNK]))
            if len(waiting) > 4 * workers:  # keeps the results in memory few
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BaseException:  # Ctrl-C, or a caller who stops asking: nothing goes on behind his back
        pool.shutdown(wait=False, kill_workers=True)
        raise


def _alone(
    function: Callable[[Item], Result], item: Item, lost: Callable[[Item], Result], workers: int, limits: Limits
) -> Result:
    pool = _pool(workers, limits)
    try:
        return pool.submit(_apply, function, limits.seconds, [item]).result()[0]
    except BrokenProcessPool:
        return lost(item)
    except BaseException:  # as above
        pool.shutdown(wait=False, kill_workers=True)
        raise


def _pool(workers: int, limits: Limits) -> Any:
    # loky's processes neither inherit locks, as forked ones would, nor import the program's own main module.
    return get_reusable_executor(
        workers, timeout=IDLE_SECONDS, initializer=_prepare, initargs=(limits.memory_mb,), context="loky"
    )


def _prepare(memory_mb: int) -> None:
    """Set up a process: its limits, no Ctrl-C of its own, and no remarks of decoders, which may quote a file's tags."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within native code
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    asked = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (asked if hard == resource.RLIM_INFINITY else min(asked, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _apply(function: Callable[[Item], Result], seconds: float, items: Sequence[Item]) -> list[Result]:
    results = []
    for item in items:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            results.append(function(item))
        except MemoryError:  # what takes too much within native code ends the process too
            os._exit(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return results
