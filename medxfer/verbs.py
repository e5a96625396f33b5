"""What all verbs share: a user's mistake becomes plain lines and exit code 2, Ctrl-C becomes 130."""

import sys
from collections.abc import Callable, Sequence

from medxfer.errors import MedxferError


def run_verb(verb: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a verb and return its exit code.

    Args:
        verb: takes the command line without the program's name and returns an exit code.
        argv: the command line; None: the process's own.

    Returns:
        The verb's own code; 2 after a user's mistake; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = any(token == "--debug" or token == "--debug=true" for token in arguments)
    try:
        return verb(arguments)
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
