"""What all verbs share: a user's mistake becomes plain lines and exit code 2, Ctrl-C becomes 130."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from medxfer.errors import MedxferError


class _Debuggable(Protocol):
    @property
    def debug(self) -> bool: ...


Config = TypeVar("Config", bound=_Debuggable)


def run_verb(read: Callable[[list[str]], Config], verb: Callable[[Config], int], argv: Sequence[str] | None) -> int:
    """Read a verb's settings, run it, and return its exit code.

    Args:
        read: the command line without the program's name → settings; their `debug` lets tracebacks through.
        verb: takes the settings and returns an exit code.
        argv: the command line; None: the process's own.

    Returns:
        The verb's own code; 2 after a user's mistake; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _asks_for_debug(arguments)
    try:
        config = read(arguments)
        debug = config.debug
        return verb(config)
    except MedxferError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # --help and --print_config; Lightning turns Ctrl-C into an exit of its own
        if debug:
            raise
        print("\nstopped by Ctrl-C", file=sys.stderr)
        return 130


def _asks_for_debug(arguments: Sequence[str]) -> bool:
    """Return whether a command line that may have mistakes asks for tracebacks; its last word counts."""
    asked = False
    for token, following in pairwise([*arguments, ""]):
        name, _, value = token.partition("=")
        if name == "--debug":
            asked = (value or following) != "false"
    return asked
