"""A CSV, or a folder of class folders → a table of texts. No image is opened here."""

import csv
import io
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from medxfer.data.reading import find_images
from medxfer.errors import DataError, listed

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""How tables and folders spell the three splits."""


def read_csv(source: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV of UTF-8, separated by comma, semicolon or tab.

    Returns:
        Its cells as texts, and each row's place in the file, for messages.

    Raises:
        DataError: it cannot be read, or its rows do not fit its header.
    """
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the table {source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the table {source} must be UTF-8 text; save it as CSV UTF-8: {error}") from error
    if not text.strip():
        raise DataError(f"the table {source} is empty; it needs a header and one row per image")
    first, _, rest = text.lstrip("\r\n").partition("\n")
    named = re.fullmatch(r"sep=(.)", first.strip())  # as Excel writes it
    delimiter = named.group(1) if named else max(",;\t", key=first.count)
    text = rest if named else text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    lines: list[str] = []
    rows: list[list[str]] = []
    faults: list[str] = []
    last = []
    line = skipped = 1 if not named else 2
    try:
        for cells in reader:
            last = cells
            if any(cell.strip() for cell in cells):
                lines.append(f"line {line}")
                rows.append([cell.strip() for cell in cells])
            line = reader.line_num + skipped
    except csv.Error as error:
        raise DataError(f"the table {source} is not a CSV: {error} in line {reader.line_num + skipped - 1}") from error
    if not rows:
        raise DataError(f"the table {source} is empty; it needs a header and one row per image")
    header = rows.pop(0)
    del lines[0]
    while not header[-1]:
        header.pop()
    twice = [repr(name) for name, count in Counter(header).items() if count > 1]
    if twice:
        faults.append(f"its header names {', '.join(twice)} more than once")
    if any(cell.endswith("\n") for cell in last):
        faults.append(f"{lines[-1]} opens a quote that is not closed")
    for place, cells in zip(lines, rows, strict=True):
        if any(cells[len(header) :]):
            faults.append(f"{place} has {len(cells)} cells, and the header names {len(header)} columns")
    if faults:
        raise DataError(listed(f"the table {source} is not a CSV with one column per name:", faults))
    if not rows:
        raise DataError(f"the table {source} has a header but no rows")
    whole = [[*cells, *[""] * len(header)][: len(header)] for cells in rows]
    return pd.DataFrame(whole, columns=header, dtype=str), lines


def read_folder(source: Path) -> tuple[pd.DataFrame, list[str]]:
    """List class folders, or class folders in folders named train, val and test.

    Returns:
        A table of path, label and, if the source gives it, split; and each row's place, for messages.

    Raises:
        DataError: with everything that would be left out or cannot be used.
    """
    folders = _folders(source)
    given = len({SPLIT_NAMES.get(folder.name.lower()) for folder in folders} - {None}) > 1
    rows = []
    faults = _beside(source, "class folders")
    for outer in folders:
        split = SPLIT_NAMES.get(outer.name.lower()) if given else None
        if given and split is None:
            faults.extend(["images lie outside of the splits, in " + outer.name] if find_images(outer) else [])
            continue
        faults.extend(_beside(outer, "class folders") if split else [])
        for folder in _folders(outer) if split else [outer]:
            found = find_images(folder)
            if not found:
                faults.append(f"the class folder {folder.relative_to(source)} holds no image")
            for path in found:
                name = str(path.relative_to(source))
                if not is_text(name):
                    faults.append(f"the name {name!r} cannot be written to a table: rename it")
                rows.append({"path": name, "label": folder.name, **({"split": split} if split else {})})
    if not rows:
        raise DataError(
            f"the folder {source} must hold one sub-folder per class with images in it (PNG, JPEG, TIFF, BMP, WebP, "
            f"DICOM), found {len(folders)} sub-folders and no image"
        )
    if faults:
        raise DataError(listed(f"the folder {source} cannot be used:", faults))
    return pd.DataFrame(rows), [f"image {number}" for number in range(1, len(rows) + 1)]


def _folders(folder: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(hidden)]


def is_text(name: str) -> bool:
    """Return whether a file's name is text; old archives hold names in other encodings."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _beside(folder: Path, what: str) -> list[str]:
    """Return one fault if images lie in a folder itself, where they would be left out."""
    images = [path for path in find_images(folder) if path.parent == folder]
    return [f"{len(images)} images lie beside the {what} of {folder}, such as {images[0].name}"] if images else []
