import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from medxfer.errors import DataError
from medxfer.verbs import run_verb


@dataclass
class Settings:
    arguments: list[str]
    debug: bool = False


def raising(error: BaseException) -> Callable[[Settings], int]:
    def verb(settings: Settings) -> int:
        raise error

    return verb


def count(settings: Settings) -> int:
    return len(settings.arguments)


def test_the_verbs_own_code_is_returned():
    assert run_verb(Settings, count, ["a", "b", "c"]) == 3


def test_a_mistake_is_2_and_plain_lines(capsys):
    assert run_verb(Settings, raising(DataError("this and\nthat")), []) == 2
    assert capsys.readouterr().err == "error: this and\nthat\n"


def test_control_c_is_130(capsys):
    assert run_verb(Settings, raising(KeyboardInterrupt()), []) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


@pytest.mark.parametrize("error", [DataError("x"), KeyboardInterrupt()])
def test_debug_lets_it_through_wherever_it_was_set(error):
    with pytest.raises(type(error)):
        run_verb(lambda arguments: Settings(arguments, debug=True), raising(error), [])


@pytest.mark.parametrize("flags", [["--debug"], ["--debug=true"], ["--debug", "true"], ["--debug", "--seed=x"]])
def test_debug_shows_where_a_mistake_in_the_settings_was_found(flags):
    with pytest.raises(DataError):
        run_verb(raising(DataError("x")), count, flags)


@pytest.mark.parametrize("flags", [[], ["--debug=false"], ["--debug", "false"], ["--debug", "--debug=false"]])
def test_without_debug_no_traceback_is_shown(flags, capsys):
    assert run_verb(raising(DataError("x")), count, flags) == 2
    assert run_verb(Settings, raising(DataError("x")), flags) == 2
    assert capsys.readouterr().err == 2 * "error: x\n"


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_verb(Settings, raising(ZeroDivisionError()), [])


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_of_its_own_keeps_its_code(code):
    with pytest.raises(SystemExit) as ended:
        run_verb(Settings, raising(SystemExit(code)), [])
    assert ended.value.code == code


def test_an_exit_that_control_c_led_to_is_130(capsys):
    def verb(settings: Settings) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run_verb(Settings, verb, []) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_without_arguments_the_processes_own_are_taken(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["medxfer.train", "a", "b"])
    assert run_verb(Settings, count, None) == 2
    assert run_verb(Settings, count, []) == 0
