"""`medxfer.weights`, without a network."""

import subprocess
import sys

import pytest
import torch

from medxfer import weights
from medxfer.models.weights import IMAGENET_URL


def test_shows_a_file_with_its_preprocessing(source, capsys):
    assert weights.main(["show", "--weights", str(source)]) == 0
    out = capsys.readouterr().out
    for text in ("source.safetensors", "564 tensors", "(0.5, 0.5, 0.5)", "source.json", "SHA-256"):
        assert text in out


def test_shows_a_run(finished, capsys):
    assert weights.main(["show", "--weights", str(finished)]) == 0
    assert "declared by:        the run" in capsys.readouterr().out


def test_says_that_the_imagenet_weights_are_not_here(capsys):
    assert weights.main(["show"]) == 1
    assert IMAGENET_URL.rpartition("/")[2] in capsys.readouterr().out


def test_a_failed_download_says_what_to_do(capsys, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert weights.main(["fetch"]) == 2
    err = capsys.readouterr().err
    assert "--model.weights PATH" in err
    assert IMAGENET_URL.rpartition("/")[2] in err


def test_an_unknown_action_is_refused(capsys):
    assert weights.main(["steal"]) == 2
    assert "action has a wrong value" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--weights", "nowhere.pth"]])
def test_smoke_in_a_process_of_its_own(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "medxfer.weights", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert "Traceback" not in done.stderr
