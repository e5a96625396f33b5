"""Files of weights that try to run code: 50 ways to do it, in every container that torch reads, on every path."""

import ast
import bdb
import builtins
import codecs
import contextlib
import cProfile
import ctypes
import functools
import io
import logging
import logging.config
import marshal
import operator
import os
import pickle
import pty
import re
import runpy
import shelve
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import timeit
import trace
import types
import webbrowser
import zipfile
from code import InteractiveInterpreter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sympy
import torch
import torch.fx.graph_module
import torch.jit.unsupported_tensor_ops
import torch.utils.collect_env
import yaml

import medxfer
from medxfer import evaluate, predict, train, weights
from medxfer.errors import MedxferError
from medxfer.models.loading import load_network
from medxfer.models.weights import SUFFIXES, load_source, read_checkpoint
from tests.conftest import training_command

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""How torch.save begins its format of before 1.6."""


FIRST = "Conv2d_1a_3x3.conv.weight"
"""A tensor of Inception V3, (32, 3, 3, 3)."""


class Call:
    """Becomes a call of a function when it is unpickled; arguments and function may be calls themselves."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __call__(self) -> None:
        """Make pickle take it for a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def method(name: str, of: object, *arguments: object) -> Call:
    """Return a call of a method of what another call returns."""
    return Call(operator.methodcaller(name, *arguments), of)


def quoted(text: str) -> bytes:
    """Return a text as protocol 0 writes it."""
    return b"S" + repr(text).encode() + b"\n"


def short(text: str) -> bytes:
    """Return a text as protocol 1 writes it."""
    return b"U" + bytes([len(text)]) + text.encode()


# Each writes the file `marker` when it is unpickled; `beside` is a prepared folder, see `prepared`.
Gadget = Callable[[Path, Path], object]


def touch(marker: Path) -> str:
    """Return a command of the shell that writes the marker."""
    return f"touch {marker}"


def python(marker: Path) -> str:
    """Return Python that writes the marker."""
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def code(marker: Path) -> types.CodeType:
    """Return the same, compiled."""
    return compile(python(marker), "gadget", "exec")


GADGETS: dict[str, Gadget] = {
    # the shell and other processes
    "os.system": lambda m, _: Call(os.system, touch(m)),
    "posix.system": lambda m, _: b"cposix\nsystem\n(" + quoted(touch(m)) + b"tR.",
    "os.popen": lambda m, _: method("read", Call(os.popen, touch(m))),
    "os.spawnlp": lambda m, _: Call(os.spawnlp, os.P_WAIT, "touch", "touch", str(m)),
    "subprocess.Popen": lambda m, _: method("wait", Call(subprocess.Popen, ["touch", str(m)])),
    "subprocess.run": lambda m, _: Call(subprocess.run, ["touch", str(m)]),
    "subprocess.getoutput": lambda m, _: Call(subprocess.getoutput, touch(m)),
    "pty.spawn": lambda m, _: Call(pty.spawn, ["touch", str(m)]),
    "webbrowser": lambda m, _: method("open", Call(webbrowser.GenericBrowser, ["touch", "%s"]), str(m)),
    "ctypes.CDLL": lambda m, _: method("system", Call(ctypes.CDLL, None), touch(m).encode()),
    # code of Python
    "builtins.eval": lambda m, _: Call(eval, python(m)),
    "builtins.exec": lambda m, _: Call(exec, python(m)),
    "builtins.compile": lambda m, _: Call(exec, Call(compile, python(m), "gadget", "exec")),
    "builtins.getattr": lambda m, _: Call(Call(getattr, Call(import_module, "os"), "system"), touch(m)),
    "builtins.__import__": lambda m, _: method("system", Call(builtins.__import__, "os"), touch(m)),
    "builtins.map": lambda m, _: Call(list, Call(map, os.system, [touch(m)])),
    "importlib, a file": lambda m, b: method(
        "load_module", Call(SourceFileLoader, "leaves", str(b / "leaves.py"))
    ),
    "runpy.run_path": lambda m, b: Call(runpy.run_path, str(b / "leaves.py")),
    "marshal and types.FunctionType": lambda m, _: Call(
        method("FunctionType", Call(import_module, "types"), Call(marshal.loads, marshal.dumps(code(m))), {})
    ),
    "timeit.timeit": lambda m, _: Call(timeit.timeit, python(m), "pass", timeit.default_timer, 1),
    "code.InteractiveInterpreter": lambda m, _: method("runsource", Call(InteractiveInterpreter), python(m)),
    "cProfile.run": lambda m, _: Call(cProfile.run, python(m)),
    "trace.Trace": lambda m, _: method("run", Call(trace.Trace, 0, 0), python(m)),
    "bdb, as in pdb.run": lambda m, _: method("run", Call(bdb.Bdb), python(m)),
    "functools.partial": lambda m, _: Call(functools.partial(os.system, touch(m))),
    "functools.reduce": lambda m, _: Call(functools.reduce, operator.call, [os.system, touch(m)]),
    "operator.attrgetter": lambda m, _: Call(Call(operator.attrgetter("system"), Call(import_module, "os")), touch(m)),
    "operator.methodcaller": lambda m, _: method("system", Call(import_module, "os"), touch(m)),
    # files
    "builtins.open": lambda m, _: Call(open, str(m), "w"),
    "codecs.open": lambda m, _: Call(codecs.open, str(m), "w"),
    "os.mkdir": lambda m, _: Call(os.mkdir, str(m)),
    "os.symlink": lambda m, _: Call(os.symlink, "/", str(m)),
    "pathlib.Path.write_text": lambda m, _: Call(Path.write_text, m, "was here"),
    "shutil.copy": lambda m, b: Call(shutil.copy, str(b / "leaves.py"), str(m)),
    "shutil.rmtree": lambda m, b: Call(shutil.rmtree, str(b / "victim")),
    "sqlite3.connect": lambda m, _: Call(sqlite3.connect, str(m)),
    "logging.FileHandler": lambda m, _: Call(logging.FileHandler, str(m)),
    "logging.config": lambda m, _: Call(
        logging.config.dictConfig,
        {"version": 1, "handlers": {"h": {"class": "logging.FileHandler", "filename": str(m)}}},
    ),
    "shelve.open": lambda m, b: method("get", Call(shelve.open, str(b / "shelf"), "r"), "key"),
    # loaders inside loaders
    "pickle.loads": lambda m, _: Call(pickle.loads, pickle.dumps(Call(os.system, touch(m)))),
    "numpy.load": lambda m, b: Call(np.load, str(b / "array.npy"), None, True),
    "joblib.load": lambda m, b: Call(joblib.load, str(b / "nested.pkl")),
    "pandas.read_pickle": lambda m, b: Call(pd.read_pickle, str(b / "nested.pkl")),
    "yaml.unsafe_load": lambda m, _: Call(yaml.unsafe_load, f"!!python/object/apply:os.system ['{touch(m)}']"),
    # what a file of weights is most easily believed to need
    "torch.load": lambda m, b: Call(functools.partial(torch.load, weights_only=False), str(b / "nested.pkl")),
    "torch.storage._load_from_bytes": lambda m, b: Call(
        torch.storage._load_from_bytes, (b / "nested.pkl").read_bytes()
    ),
    "torch.save": lambda m, _: Call(torch.save, {}, str(m)),
    "torch.hub.load": lambda m, b: Call(functools.partial(torch.hub.load, source="local"), str(b), "entry"),
    "torch.hub.download_url_to_file": lambda m, b: Call(
        torch.hub.download_url_to_file, (b / "leaves.py").as_uri(), str(m), None, False
    ),
    "torch.utils.collect_env.run": lambda m, _: Call(torch.utils.collect_env.run, touch(m)),
    "torch.jit…execWrapper": lambda m, _: Call(torch.jit.unsupported_tensor_ops.execWrapper, python(m), {}, {}),
    "torch.fx…_exec_with_source": lambda m, _: Call(torch.fx.graph_module._exec_with_source, python(m), {}),
    "torch.fx…reduce_graph_module": lambda m, _: Call(
        torch.fx.graph_module.reduce_graph_module, {"_code": f"{python(m)}\n"}, ""
    ),
    "sympy.sympify": lambda m, _: Call(sympy.sympify, python(m)),
    # the same by other opcodes than GLOBAL and REDUCE
    "protocol 0": lambda m, _: pickle.dumps(Call(os.system, touch(m)), protocol=0),
    "STACK_GLOBAL of protocol 4": lambda m, _: pickle.dumps(Call(os.system, touch(m)), protocol=4),
    "INST": lambda m, _: b"(" + quoted(touch(m)) + b"iposix\nsystem\n.",
    "OBJ": lambda m, _: b"(cposix\nsystem\n" + quoted(touch(m)) + b"o.",
    "NEWOBJ": lambda m, _: (
        b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\ncposix\nsystem\n(" + quoted(touch(m)) + b"l\x86\x81\x85\x81."
    ),
    "NEWOBJ_EX": lambda m, _: (
        b"\x80\x04cfunctools\npartial\ncposix\nsystem\n" + quoted(touch(m)) + b"\x86}\x92)R."
    ),
    "BUILD by __setstate__": lambda m, _: (
        b"cfunctools\npartial\n(cbuiltins\nprint\ntR(cposix\nsystem\n(" + quoted(touch(m)) + b"t}Ntb(tR."
    ),
    "a persistent id": lambda m, _: (
        b"\x80\x02(" + short("storage") + b"cposix\nsystem\n" + quoted(touch(m)) + b"\x85R" + short("0") + b"tQ."
    ),
    "a key of a dictionary": lambda m, _: b"\x80\x02}cposix\nsystem\n" + quoted(touch(m)) + b"\x85RNs.",
}  # fmt: skip


def payload(gadget: Gadget, marker: Path, beside: Path) -> bytes:
    """Return a gadget as a pickle; of protocol 2, which is torch's own, unless it is written by hand."""
    found = gadget(marker, beside)
    return found if isinstance(found, bytes) else pickle.dumps(found, protocol=2)


def in_a_dictionary(pickled: bytes) -> bytes:
    """Return {"state_dict": what was pickled}; what needs protocol 4 stays as it is."""
    if pickled.startswith(b"\x80\x04"):
        return pickled
    return b"\x80\x02}" + short("state_dict") + pickled.removeprefix(b"\x80\x02")[:-1] + b"s."


def zipped(pickled: bytes, **more: bytes) -> bytes:
    """Return the format of torch.save since 1.6."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        records = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def legacy(pickled: bytes) -> bytes:
    """Return the format of torch.save before 1.6: magic number, protocol, sizes, content, keys of storages."""
    sizes = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    before = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, PROTOCOL, sizes))
    return before + pickled + pickle.dumps([], protocol=2)


def tarred(pickled: bytes) -> bytes:
    """Return the format of torch 0.1, a tar of three pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return file.getvalue()


def torchscript(pickled: bytes) -> bytes:
    """Return what `torch.jit.save` writes, with the pickle in both places."""
    return zipped(pickled, **{"constants.pkl": pickled, "code/__torch__.py": b""})


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": zipped,
    "zip, in a dictionary": lambda pickled: zipped(in_a_dictionary(pickled)),
    "TorchScript": torchscript,
    "legacy": legacy,
    "legacy, in a dictionary": lambda pickled: legacy(in_a_dictionary(pickled)),
    "tar": tarred,
    "plain pickle": lambda pickled: pickled,
}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with what some gadgets load or destroy; all of it would write, or remove, the marker."""
    return prepare(tmp_path / "beside", tmp_path / "marker")


def prepare(folder: Path, marker: Path) -> Path:
    (folder / "victim").mkdir(parents=True)
    for name in ("leaves.py", "hubconf.py"):
        (folder / name).write_text(f"{python(marker)}\n\ndef entry():\n    pass\n")
    nested = pickle.dumps(Call(os.system, touch(marker)), protocol=2)
    (folder / "nested.pkl").write_bytes(nested)
    array = np.empty(1, dtype=object)
    array[0] = Call(os.system, touch(marker))
    np.save(folder / "array.npy", array, allow_pickle=True)
    with shelve.open(str(folder / "shelf")) as shelf:
        shelf["key"] = Call(os.system, touch(marker))
    return folder


def was_run(marker: Path, beside: Path) -> bool:
    return os.path.lexists(marker) or not (beside / "victim").is_dir()


# Runs every pickle of a folder as a loader that trusts them would.
TRUSTING = """
import contextlib, os, pathlib, pickle, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for file in sorted(pathlib.Path(sys.argv[1]).glob("*/payload")):
    path = list(sys.path)
    with contextlib.suppress(BaseException):
        pickle.loads(file.read_bytes())
    sys.path[:] = path
    sys.modules.pop("leaves", None)
"""


def test_every_gadget_works_where_it_is_trusted(tmp_path):
    """Without this the other tests could pass because a gadget is broken."""
    places = {name: tmp_path / f"{number:03}" for number, name in enumerate(GADGETS)}
    for name, place in places.items():
        beside = prepare(place, place / "marker")
        (place / "payload").write_bytes(payload(GADGETS[name], place / "marker", beside))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRUSTING, str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [name for name, place in places.items() if not was_run(place / "marker", place)] == []
    assert len(GADGETS) >= 50


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "TorchScript"])
def test_every_container_works_where_it_is_trusted(tmp_path, container):
    """TorchScript is left out: torch never reads it as pickles of Python."""
    (tmp_path / "w.pt").write_bytes(CONTAINERS[container](pickle.dumps(Call(Path.touch, tmp_path / "marker"), 2)))
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def assert_refused(load: Callable[[], object], path: Path) -> None:
    with pytest.raises(MedxferError) as caught:
        load()
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", GADGETS)
def test_no_gadget_is_run_in_any_container_under_any_name(tmp_path, beside, name):
    marker = tmp_path / "marker"
    pickled = payload(GADGETS[name], marker, beside)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for wrap in CONTAINERS.values():
        content = wrap(pickled)
        for suffix in SUFFIXES:
            path = tmp_path / f"w{suffix}"
            path.write_bytes(content)
            assert_refused(functools.partial(load_source, str(path)), path)
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        path.write_bytes(content)
        assert_refused(functools.partial(load_source, str(tmp_path / "run")), path)
        assert_refused(functools.partial(load_network, path), path)
        assert not was_run(marker, beside)


def test_no_gadget_is_run_by_an_environment_that_asks_for_unsafe_loading(tmp_path, beside, monkeypatch):
    """torch obeys this variable wherever a caller leaves the choice to it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "w.pth"
    path.write_bytes(zipped(payload(GADGETS["os.system"], tmp_path / "marker", beside)))
    assert_refused(functools.partial(read_checkpoint, path), path)
    assert not was_run(tmp_path / "marker", beside)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_refusal_gives_no_advice_to_load_the_file_all_the_same(tmp_path, beside, container):
    path = tmp_path / "w.pth"
    path.write_bytes(CONTAINERS[container](payload(GADGETS["os.system"], tmp_path / "marker", beside)))
    with pytest.raises(MedxferError) as caught:
        load_source(str(path))
    assert not re.search("weights_only|torch.load|Re-running", str(caught.value))


def test_a_checkpoint_that_is_whole_but_for_a_gadget_is_refused(finished, tmp_path):
    content = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    path = tmp_path / "best.ckpt"
    torch.save({**content, "extra": Call(Path.touch, tmp_path / "marker")}, path)
    for load in (load_network, read_checkpoint, lambda path: load_source(str(path))):
        assert_refused(functools.partial(load, path), path)
    assert not (tmp_path / "marker").exists()


def test_what_torch_may_rebuild_is_widened_by_nobody_else():
    """A library that is imported can add classes for the whole process; MONAI adds four that hold metadata."""
    found = {f"{kind.__module__}.{kind.__qualname__}" for kind in torch.serialization.get_safe_globals()}
    own = {name for name in found if name.startswith(("torch.", "builtins.", "traceback."))}
    assert found - own <= {
        "monai.data.meta_obj.MetaObj", "monai.data.meta_tensor.MetaTensor", "monai.utils.enums.MetaKeys",
        "monai.utils.enums.SpaceKeys",
    }  # fmt: skip


ODD = {
    "a number as a key": {1: torch.zeros(1)},
    "a sparse tensor": {FIRST: torch.zeros(32, 3, 3, 3).to_sparse()},
    "a tensor without content": {FIRST: torch.zeros(32, 3, 3, 3, device="meta")},
    "a description that describes nothing": {"medxfer": {"spec": {"input_mean": [10**400], "input_std": [1.0]}}},
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_plain_content_of_an_unusual_kind_is_refused_too(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(MedxferError, match=r"w\.pth"):
        load_source(str(tmp_path / "w.pth"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose checkpoints are still to be put in."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "run.json", "split.csv", "history.csv"):
        shutil.copy(finished / name, folder / name)
    return folder


def verbs(run: Path, file: Path, finished: Path, table: Path, source: Path) -> dict[str, tuple[Any, list[str]]]:
    """Return every command that loads a file: the last three those of a run, the others any file."""
    # the folder of the finished run has its pixels, so nothing is decoded again
    training = {"tracking__run_name": "poisoned", "debug": "false"}
    output = run / "predictions.csv"
    return {
        "weights show, a file": (weights, ["show", f"--weights={file}"]),
        "weights show, a run": (weights, ["show", f"--weights={run}"]),
        "train, a file": (train, training_command(finished.parent, table, file, **training)),
        "train, a run": (train, training_command(finished.parent, table, run, **training)),
        "train --resume": (train, ["--resume", str(run), "--stages.finetune_epochs=3"]),
        "evaluate": (evaluate, ["--run", str(run), f"--data.source={table}", "--accelerator=cpu"]),
        "predict": (predict, ["--run", str(run), str(table.parent), f"--output={output}", "--accelerator=cpu"]),
    }


@pytest.mark.parametrize("container", ["zip", "TorchScript", "legacy", "tar"])
def test_every_verb_refuses_with_exit_code_2_and_one_line(
    finished, xrays, source, run, tmp_path, beside, capsys, container
):
    marker = tmp_path / "marker"
    file = tmp_path / "w.pth"
    for path in (file, run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"):
        path.write_bytes(CONTAINERS[container](payload(GADGETS["os.system"], marker, beside)))
    for name, (verb, arguments) in verbs(run, file, finished, xrays, source).items():
        if name.startswith("train") and container != "zip":
            continue  # these read labels and images before, and go on with the same function
        assert verb.main(arguments) == 2, name
        err = capsys.readouterr().err
        assert err.startswith("error: "), name
        assert len(err.splitlines()) == 1
        assert re.search(r"w\.pth|best\.ckpt|last\.ckpt", err)
        assert not was_run(marker, beside), name
    assert not (finished.parent / "poisoned").exists()


TAGS = {
    "apply": "seed: !!python/object/apply:os.system ['touch {marker}']",
    "new": "seed: !!python/object/new:subprocess.Popen [[touch, {marker}]]",
    "name": "seed: !!python/name:os.system",
    "module": "seed: !!python/module:antigravity",
    "class_path": "optim: {{class_path: subprocess.Popen, init_args: {{args: [touch, {marker}]}}}}",
    "a pickle": "cposix\nsystem\n(S'touch {marker}'\ntR.",
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_config_that_names_code_is_refused(finished, xrays, source, run, tmp_path, capsys, tag):
    (run / "config.yaml").write_text(TAGS[tag].format(marker=tmp_path / "marker"))
    resume = ["--resume", str(run)]
    for arguments in (["--config", str(run / "config.yaml"), "--data.source=x"], resume):
        assert train.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: the settings cannot be used")
        assert "Traceback" not in err
    assert not (tmp_path / "marker").exists()


def test_evaluate_refuses_a_run_whose_config_names_code(finished, xrays, run, tmp_path, capsys):
    (run / "checkpoints" / "best.ckpt").symlink_to(finished / "checkpoints" / "best.ckpt")
    (run / "config.yaml").write_text(TAGS["apply"].format(marker=tmp_path / "marker"))
    try:
        assert evaluate.main(["--run", str(run), f"--data.source={xrays}", "--accelerator=cpu"]) == 2
    finally:
        assert not (tmp_path / "marker").exists()


def test_a_record_that_is_a_pickle_is_refused(run, xrays, tmp_path, capsys):
    (run / "run.json").write_bytes(pickle.dumps(Call(Path.touch, tmp_path / "marker"), protocol=0))
    for _, (verb, arguments) in list(verbs(run, run, run, xrays, run).items())[-3::2]:
        assert verb.main(arguments) == 2
        assert "run.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_a_record_that_is_a_list_is_refused(run, xrays):
    (run / "run.json").write_text("[]")
    assert predict.main(["--run", str(run), str(xrays.parent), f"--output={run / 'p.csv'}"]) == 2


LOADERS = {
    "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "dbm", "jsonpickle", "runpy", "imp", "code"
}  # fmt: skip
"""Modules that run code in what they read; of pickle itself, an exception may be named."""

CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "posix.system", "pd.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all", "torch.jit.load",
    "torch.hub.load", "torch.export.load", "torch.ops.load_library", "torch.storage._load_from_bytes",
}  # fmt: skip
"""Functions that do."""


def unsafe(text: str) -> Iterator[str]:
    """Yield every place of a module where what is read from a file could be run."""
    nodes = list(ast.walk(ast.parse(text)))
    loaders = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}
    for node in nodes:
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]:
            loaders.add(node.name)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            found = bool(names & LOADERS) or any(a.name == "pickle" and a.asname for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = node.module in LOADERS | {"pickle"}
        elif isinstance(node, ast.Attribute):
            found = ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError"
        else:
            found = isinstance(node, ast.Call) and _is_unsafe_call(node, loaders)
        if found:
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def _is_unsafe_call(call: ast.Call, loaders: set[str]) -> bool:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in CALLS or name.endswith("load_from_checkpoint"):
        return True
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        return True
    if name == "torch.load" or name.endswith("trainer.fit"):
        return given.get("weights_only") != "True"
    if name == "yaml.load":
        return (given.get("Loader") or ast.unparse(call.args[-1])) not in loaders
    return name == "np.load" and len(call.args) > 2  # the third is allow_pickle


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=choice)",
        "torch.load(path, **more)", "trainer.fit(task, ckpt_path=last)", "np.load(path, allow_pickle=True)",
        "np.load(path, 'r', True)", "yaml.load(text, yaml.Loader)", "yaml.load(text)", "yaml.unsafe_load(text)",
        "class L(yaml.Loader): ...\nyaml.load(text, L)", "pickle.load(file)", "from pickle import load",
        "import pickle as p", "import joblib", "pd.read_pickle(path)", "eval(text)",
        "TransferTask.load_from_checkpoint(path)", "torch.jit.load(path)", "torch.hub.load('a/b', 'c')",
        "os.system(text)", "subprocess.run(text, shell=True)",
    ],
)  # fmt: skip
def test_the_scan_of_the_source_finds(text):
    assert list(unsafe(text))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, map_location='cpu', weights_only=True)", "np.load(path, mmap_mode='r')", "re.compile(text)",
        "net.eval()",
        "class L(yaml.SafeLoader): ...\nyaml.load(text, L)", "yaml.load(text, yaml.BaseLoader)", "json.load(file)",
        "try: ...\nexcept pickle.UnpicklingError: ...", "import pickle", "subprocess.run(['git'], check=True)",
    ],
)  # fmt: skip
def test_the_scan_of_the_source_leaves_alone(text):
    assert not list(unsafe(text))


def test_no_file_of_the_product_loads_what_could_run_code():
    folder = Path(medxfer.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 40
    assert [f"{file.name} {fault}" for file in files for fault in unsafe(file.read_text(encoding="utf-8"))] == []
