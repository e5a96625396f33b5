"""Nothing of medxfer asks the network for anything, unless it is told to: internet sockets are denied and watched."""

import json
import os
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import medxfer
from medxfer.data.phantoms import write_xray_phantoms
from tests.conftest import training_command

# Python imports this module first in every process that has its folder on the path, those of the workers too. The hook
# notes and refuses what Python tries; where Linux lets us, the kernel ends a process that tries it from C.
WATCH = """
import sys

def _watch(note):
    import json, os, socket, threading, traceback
    families = {int(socket.AF_INET), int(socket.AF_INET6)}
    by_name = {"getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo"}
    on_socket = {"connect", "bind", "sendto", "sendmsg"}

    def hook(event, arguments):
        if not event.startswith("socket."):
            return
        kind = event.removeprefix("socket.")
        if kind == "__new__":
            denied = arguments[1] in families
        elif kind in on_socket:
            denied = arguments[0].family in families
        else:
            denied = kind in by_name
        if denied:
            stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack()[:-1]]
            plain = [argument for argument in arguments if not isinstance(argument, socket.socket)]
            attempt = {"event": event, "arguments": repr(plain), "stack": stack[-12:]}
            with open(note, "a") as file:
                file.write(json.dumps(attempt) + chr(10))
            raise PermissionError(f"{event} is denied: {plain}")

    sys.addaudithook(hook)

def _deny(number, architecture):
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    load, equal, give, allow, kill = 0x20, 0x15, 0x06, 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4), (equal, 0, 5, architecture),           # another architecture: allowed
        (load, 0, 0, 0), (equal, 0, 3, number),                 # another call than socket(): allowed
        (load, 0, 0, 16), (equal, 2, 0, 2), (equal, 1, 0, 10),  # AF_INET and AF_INET6: the end
        (give, 0, 0, allow), (give, 0, 0, kill),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    filter = Filter(len(program), ctypes.addressof(code))
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(filter)) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")

import os
_watch(os.environ["WATCH_NOTE"])
if os.environ.get("WATCH_KERNEL"):
    _deny(*map(int, os.environ["WATCH_KERNEL"].split()))
"""

SOCKET_CALL = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}
"""Number of socket(), and how Linux calls the architecture."""

IMPORT_ALL = """
import importlib, pkgutil, medxfer
for module in pkgutil.walk_packages(medxfer.__path__, "medxfer."):
    importlib.import_module(module.name)
    print(module.name)
"""


VERBS = """
import importlib, json, sys
for verb, arguments in json.loads(sys.argv[1]).items():
    code = importlib.import_module(f"medxfer.{verb}").main(arguments)
    if code:
        sys.exit(code)
"""


class Watched:
    """Runs Python in processes without a network, and tells what they tried.

    The environment is nearly empty: variables such as CI or DO_NOT_TRACK would keep libraries quiet by themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.note = folder / "attempts.jsonl"
        self.folder = folder
        (folder / "site").mkdir()
        (folder / "home").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(WATCH)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{folder / 'site'}:{Path(medxfer.__file__).parents[1]}", "WATCH_NOTE": str(self.note),
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        }  # fmt: skip
        self.in_kernel = False
        call = SOCKET_CALL.get(platform.machine()) if sys.platform == "linux" else None
        if call is not None:
            self.environment["WATCH_KERNEL"] = "{} {}".format(*call)
            self.in_kernel = self.run("-c", "").returncode == 0
        if not self.in_kernel:
            self.environment.pop("WATCH_KERNEL", None)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )

    def attempts(self) -> list[dict]:
        """Return what was tried, but for a look at which addresses this machine has."""
        if not self.note.exists():
            return []
        tried = [json.loads(line) for line in self.note.read_text().splitlines()]
        return [one for one in tried if not _looks_for_ipv6(one)]


def _looks_for_ipv6(attempt: dict) -> bool:
    """Return whether it is urllib3's question, on import, whether ::1 is an address here; nothing is sent."""
    return any("urllib3" in frame and frame.endswith(" _has_ipv6") for frame in attempt["stack"])


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "watched").mkdir()
    return Watched(tmp_path / "watched")


@pytest.mark.parametrize(
    "attempt",
    [
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
        "import urllib.request; urllib.request.urlopen('https://medxfer.invalid/')",
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "import socket; socket.getaddrinfo('medxfer.invalid', 80)",
        "import socket; socket.gethostbyname('medxfer.invalid')",
        "import requests; requests.get('http://192.0.2.1/')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'], check=True)",
        "from multiprocessing import get_context; import socket\n"
        "if __name__ == '__main__': get_context('forkserver').Pool(1).apply(socket.socket)",
    ],
)
def test_an_attempt_is_seen_and_refused(watched, attempt):
    """Without this, the other tests could pass because nothing is watched."""
    (watched.folder / "attempt.py").write_text(attempt)
    done = watched.run("attempt.py")
    assert done.returncode != 0
    assert "PermissionError" in done.stderr or "is denied" in done.stderr
    assert watched.attempts()


def test_an_attempt_from_c_ends_the_process(watched):
    if not watched.in_kernel:
        pytest.skip("the kernel takes no filter of system calls here")
    call = "import ctypes; print(ctypes.CDLL(None).socket({}, 1, 0), flush=True)"
    assert watched.run("-c", call.format(1)).returncode == 0
    for family in (2, 10):
        assert watched.run("-c", call.format(family)).returncode < 0


def test_sockets_of_one_machine_are_left_alone(watched):
    done = watched.run("-c", "import socket; socket.socketpair(); socket.socket(socket.AF_UNIX)")
    assert done.returncode == 0, done.stderr
    assert watched.attempts() == []


def test_importing_everything_asks_for_nothing(watched):
    done = watched.run("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    modules = {module.name for module in pkgutil.walk_packages(medxfer.__path__, "medxfer.")}
    assert set(done.stdout.split()) == modules
    assert watched.attempts() == []


def test_training_evaluation_and_prediction_ask_for_nothing(watched, xrays, source, tmp_path):
    others = write_xray_phantoms(tmp_path / "others", patients=10, size_px=96, seed=7)
    command = training_command(
        tmp_path / "runs", xrays, source, data__num_workers=1, stages__head_epochs=0, debug="false"
    )
    run = ["--run", str(tmp_path / "runs" / "run"), "--accelerator=cpu"]
    verbs = {
        "train": command,
        "evaluate": [*run, "--data.source", str(others), "--data.num_workers=0"],
        "predict": [*run, str(others.parent), "--num_workers=1", "--output", str(tmp_path / "predictions.csv")],
        "weights": ["show", "--weights", str(source)],
    }
    done = watched.run("-c", VERBS, json.dumps(verbs))
    assert done.returncode == 0, done.stderr
    assert "SHA-256" in done.stdout  # the last verb's
    assert watched.attempts() == []
