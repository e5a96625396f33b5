"""A folder of DICOM files → a table to be labelled; patients are named by a keyed hash."""

import functools
import hashlib
import hmac
import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from medxfer.data.dicom_files import read_dataset, text_of
from medxfer.data.isolation import isolated
from medxfer.data.reading import MAX_PIXELS, find_images, is_dicom_file
from medxfer.data.tables import is_text
from medxfer.errors import DataError

KEY_FILE = ".medxfer-patient-key"
"""Beside the images: with the same key the same patient gets the same name; without it nobody finds the patient."""

KEY_BYTES = 32
NAME_CHARACTERS = 16

COLUMNS = ("path", "label", "patient_id", "modality", "view", "laterality", "rows", "columns", "frames")


@dataclass(frozen=True)
class Scanned:
    """One file's tags, or why it is no picture."""

    tags: dict[str, str]
    reason: str = ""


def scan_folder(folder: Path, *, workers: int) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """List the DICOM pictures below a folder.

    Args:
        folder: every file of it is looked at, whatever its name.
        workers: processes that read.

    Returns:
        A table of texts, one row per picture: path (below the folder), label (blank), patient_id (keyed hash of the
        patient's id; blank without one), modality, view, laterality, rows, columns, frames. And path
        and reason of each DICOM file that is no picture.

    Raises:
        DataError: the folder has no DICOM picture, or the key cannot be kept there.
    """
    if not folder.is_dir():
        raise DataError(f"--scan needs a folder of DICOM files; there is no folder {folder}")
    inside = folder.resolve()
    files = [file for file in find_images(folder) if file.is_file() and is_dicom_file(file)]
    files = [file for file in files if file.resolve().is_relative_to(inside)]  # as tables are read
    if not files:
        raise DataError(f"the folder {folder} holds no DICOM file")
    key = _key(folder)
    read = functools.partial(_scan_file, key=key)
    bar = tqdm(
        isolated(read, files, lost=_lost, workers=workers), "reading tags", total=len(files),
        disable=None, unit="file", leave=False,
    )  # fmt: skip
    rows, others = [], []
    for file, scanned in zip(files, bar, strict=True):
        path = file.relative_to(folder).as_posix()
        if not is_text(path):
            others.append((ascii(path), "has a name that cannot be written to a table: rename it"))
        elif scanned.reason:
            others.append((path, scanned.reason))
        else:
            rows.append({"path": path, "label": "", **scanned.tags})
    if not rows:
        raise DataError(f"none of the {len(files)} DICOM files in {folder} holds a picture")
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str), others


def _scan_file(file: Path, key: bytes) -> Scanned:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks quote tag values
            dataset, _ = read_dataset(file, max_pixels=MAX_PIXELS, frame="first")
            tags = {
                "modality": text_of(dataset, "Modality"),
                "view": text_of(dataset, "ViewPosition"),
                "laterality": text_of(dataset, "ImageLaterality") or text_of(dataset, "Laterality"),
                "rows": text_of(dataset, "Rows"),
                "columns": text_of(dataset, "Columns"),
                "frames": text_of(dataset, "NumberOfFrames") or "1",
            }
            patient = text_of(dataset, "PatientID")
    except DataError as error:
        return Scanned({}, str(error))
    except OSError as error:
        return Scanned({}, error.strerror or "cannot be read")
    except Exception as error:  # pydicom converts a tag when it is first asked for, and can fail in many ways
        return Scanned({}, f"is a damaged DICOM file: {type(error).__name__} while its tags are read")
    tags = {name: value.lstrip("=+-@") for name, value in tags.items()}  # which a spreadsheet would compute
    return Scanned({"patient_id": keyed_hash(patient, key) if patient else "", **tags})


def keyed_hash(text: str, key: bytes) -> str:
    """Return HMAC-SHA-256 of a text (RFC 2104), its first 64 bits in hexadecimal."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:NAME_CHARACTERS]


def _key(folder: Path) -> bytes:
    """Return the folder's key; a new one is made where there is none."""
    path = folder / KEY_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if len(key) != KEY_BYTES:
            raise DataError(f"{path} must hold {KEY_BYTES} bytes, found {len(key)}: put the key back, or remove it "
                            "and write all tables of these patients anew") from None  # fmt: skip
        return key
    except OSError as error:
        raise DataError(
            f"the key that hides the patients' ids cannot be kept in {folder}: {error.strerror}; make the folder "
            "writable, or scan a copy"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key := secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    return key


def _lost(_: Path) -> Scanned:
    return Scanned({}, "is damaged: reading it crashed, took too long or too much memory")
