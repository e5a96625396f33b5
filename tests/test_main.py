"""`medxfer VERB` and `python -m medxfer`."""

import subprocess
import sys

import pytest

from medxfer.__main__ import VERBS, main


def test_lists_the_verbs(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["--version"]])
def test_anything_else_is_refused_with_the_list(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: medxfer VERB" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_hands_the_rest_to_the_verb(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"python -m medxfer.{verb}" in capsys.readouterr().out


def test_smoke_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "medxfer", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "train" in done.stdout
