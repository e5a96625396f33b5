"""The errors medxfer raises for a user's mistake: one base class and its three kinds.

Every verb turns a `MedxferError` into a few plain lines on stderr and exit code 2. Anything else that escapes is a bug.
"""

from collections.abc import Iterable


class MedxferError(Exception):
    """A mistake the user can correct. Its message says what must hold, what was found, where, and what to do next."""


class ConfigError(MedxferError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(MedxferError):
    """A table of labels, a split or an image that cannot be used."""


class CheckpointError(MedxferError):
    """A file of weights, a checkpoint or a run folder that cannot be used."""


def listed(title: str, faults: Iterable[str], *, limit: int = 20) -> str:
    """Join faults into one message: a title, a line per fault, at most `limit` of them, and a count of the rest.

    >>> print(listed("2 faults:", ["a is missing", "b is missing"]))
    2 faults:
      - a is missing
      - b is missing
    """
    faults = list(faults)
    lines = [title, *(f"  - {fault}" for fault in faults[:limit])]
    if len(faults) > limit:
        lines.append(f"  … and {len(faults) - limit} more")
    return "\n".join(lines)
