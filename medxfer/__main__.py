"""`medxfer <verb>` is the same as `python -m medxfer.<verb>`."""

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "check": "audit a table of labelled images, or make one of a folder of DICOM files",
    "train": "fine-tune a network on a table of labelled images",
    "evaluate": "test a finished run on images it has never seen",
    "predict": "apply a finished run to images",
    "weights": "fetch or show source weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the command line to a verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in VERBS:
        return importlib.import_module(f"medxfer.{arguments[0]}").main(arguments[1:])
    usage = "usage: medxfer VERB ...\n" + "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    if arguments in (["--help"], ["-h"]):
        print(usage)
        return 0
    print(usage, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
