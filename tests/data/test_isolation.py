"""Work in processes that may end: every item gets its result or is named, and nothing goes on when nobody asks."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medxfer.data.isolation import CHUNK, Limits, isolated

Item = tuple[str, int]

LIMITS = Limits(memory_mb=2000, seconds=1.0)
ENDINGS = ("abort", "exit", "kill", "crash", "hang", "memory")


def _work(item: Item) -> int:
    """Square a number; or end the process, or block it, as the item says."""
    kind, number = item
    if kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(0)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "crash":
        ctypes.string_at(0)
    elif kind == "hang":
        time.sleep(1000)
    elif kind == "memory":
        return len(bytearray(4 * 2**30))  # which would succeed without a limit
    return number**2


def _lost(item: Item) -> Item:
    return item


def _good(count: int) -> list[Item]:
    return [("good", number) for number in range(count)]


def _expected(items: list[Item]) -> list[object]:
    return [number**2 if kind == "good" else (kind, number) for kind, number in items]


def _found(items: list[Item], workers: int = 2, limits: Limits = LIMITS) -> list[object]:
    return list(isolated(_work, items, lost=_lost, workers=workers, limits=limits))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, CHUNK, 150])
def test_results_are_those_of_a_plain_map_in_order(workers, count):
    assert _found(_good(count), workers) == [number**2 for number in range(count)]


@pytest.mark.parametrize("kind", ENDINGS)
def test_an_item_that_ends_its_process_is_named_and_the_others_are_right(kind):
    items = _good(2 * CHUNK)
    items[CHUNK - 1] = (kind, CHUNK - 1)
    assert _found(items, workers=1) == _expected(items)


@pytest.mark.parametrize("workers", [1, 2])
def test_several_such_items_in_one_chunk_and_in_others(workers):
    items = _good(4 * CHUNK)
    for place, kind in ((0, "exit"), (1, "memory"), (CHUNK + 3, "abort"), (4 * CHUNK - 1, "kill")):
        items[place] = (kind, place)
    assert _found(items, workers) == _expected(items)


def test_nothing_but_such_items():
    items: list[Item] = [("exit", number) for number in range(3)]
    assert _found(items, workers=1) == items


def test_time_is_counted_per_item_and_not_per_chunk():
    items = [0.3] * 4
    found = isolated(_sleep, items, lost=lambda _: 0.0, workers=1, limits=LIMITS)
    assert list(found) == items


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_an_exception_of_the_function_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        list(isolated(_divide, [1, 0, 2], lost=_lost, workers=1))
    assert _found(_good(3), 1) == [0, 1, 4]


def _divide(number: int) -> float:
    return 1 / number


def _noted(folder: Path, item: Item) -> int:
    """Leave a file with the process's number, and take a little time."""
    (folder / str(os.getpid())).touch()
    time.sleep(0.05)
    return _work(item)


def _processes(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def _is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _assert_ended(folder: Path) -> None:
    assert _processes(folder)
    for process in _processes(folder):
        _await(lambda process=process: not _is_there(process), f"process {process} goes on")


def test_nothing_goes_on_when_the_caller_stops_asking(tmp_path):
    found = isolated(functools.partial(_noted, tmp_path), _good(500), lost=_lost, workers=2)
    assert [next(found) for _ in range(3)] == [0, 1, 4]
    assert any(_is_there(process) for process in _processes(tmp_path))
    found.close()
    _assert_ended(tmp_path)
    assert _found(_good(20)) == _expected(_good(20))  # and the next call is served


@pytest.fixture
def interruption() -> Iterator[Callable[[], None]]:
    """Give a function that interrupts this process as Ctrl-C does, once the work is under way."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 1.5)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kinds", [("good",), ("exit", "hang")], ids=["in a chunk", "alone"])
def test_nothing_goes_on_when_the_caller_is_interrupted(tmp_path, interruption, kinds):
    items = [(kinds[number % len(kinds)], number) for number in range(500)]
    found = isolated(functools.partial(_noted, tmp_path), items, lost=_lost, workers=1, limits=Limits(seconds=1000))
    interruption()
    with pytest.raises(KeyboardInterrupt):
        list(found)
    _assert_ended(tmp_path)


def test_workers_know_neither_torch_nor_ctrl_c():
    (found,) = isolated(_surroundings, [0], lost=_lost, workers=1)
    assert found == (False, True)


def _surroundings(_: int) -> tuple[bool, bool]:
    __import__("medxfer.data.decoding")
    return "torch" in sys.modules, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


PROGRAM = """
from pathlib import Path
from medxfer.data.isolation import isolated
with Path("runs").open("a") as file:
    file.write("x")
print(list(isolated(abs, range(-3, 3), lost=abs, workers=2)))
"""


def test_the_programs_own_main_module_runs_once(tmp_path):
    """Even without the guard that `spawn` asks for."""
    (tmp_path / "program.py").write_text(PROGRAM)
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == "[3, 2, 1, 0, 1, 2]\n"
    assert ended.stderr == ""
    assert (tmp_path / "runs").read_text() == "x"


def test_remarks_of_decoders_go_nowhere(capfd):
    assert list(isolated(_remark, [1, 2], lost=_lost, workers=1)) == [1, 2]
    assert "CANARY" not in "".join(capfd.readouterr())


def _remark(number: int) -> int:
    os.write(2, b"a library quotes CANARY^PATIENT\n")
    print("so does Python: CANARY^PATIENT", file=sys.stderr, flush=True)
    return number
