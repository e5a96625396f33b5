import getpass
import platform
import subprocess

import mlflow
import numpy as np
import torch

from medxfer.tracking import environment


def test_versions_are_those_that_are_imported():
    found = environment.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # the wheel's name drops the rest
    assert found["numpy"] == np.__version__
    assert found["mlflow"] == mlflow.__version__
    assert set(environment.PACKAGES) < set(found)


def test_a_package_without_metadata_is_said(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert environment.versions()["no-such-package"] == "not installed as a package"


def test_hardware_names_no_machine_and_no_user():
    found = environment.hardware()
    assert int(found["memory_mb"]) > 100
    assert int(found["cores"]) >= 1
    assert platform.node() not in found.values()
    assert getpass.getuser() not in found.values()


def test_the_commit_is_gits_own():
    folder = environment.Path(environment.__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        assert environment.git_commit() is None
        return
    expected = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert environment.git_commit() in (expected, f"{expected}-dirty")


def test_without_git_there_is_no_commit(monkeypatch):
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", gone)
    assert environment.git_commit() is None


def test_everything_is_text_and_no_path():
    for values in (environment.versions(), environment.hardware()):
        assert all(isinstance(value, str) and value for value in values.values())
        assert not any(str(environment.Path.home()) in value for value in values.values())


def test_gpus_are_torchs():
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    assert environment.hardware()["gpus"] == (", ".join(names) if names else "none")
