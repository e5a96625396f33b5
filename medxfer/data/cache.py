"""Results that take long, kept beside the decoded pictures and found again by the content they belong to."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def remembered(folder: Path, name: str, key: Iterable[str], compute: Callable[[], Any]) -> Any:
    """Return what was computed before for the same key, or compute and keep it.

    Args:
        folder: of the files.
        name: what is computed.
        key: everything the result depends on.
        compute: gives a result of plain types that JSON can hold.
    """
    digest = hashlib.sha256("\x1f".join([name, *key]).encode()).hexdigest()[:32]
    file = folder / f"{name}-{digest}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        result = compute()
    try:
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False, encoding="utf-8") as opened:
            temporary = Path(opened.name)
            json.dump(result, opened)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError:  # a full disk: it is computed again the next time
        with contextlib.suppress(OSError, UnboundLocalError):
            temporary.unlink()
    return result
