"""A table of texts → one validated row per image. No image is opened here."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medxfer.data.tables import SPLIT_NAMES, read_csv, read_folder
from medxfer.errors import DataError, listed

NO_SPLIT = "none"
"""As `split_column`: make the split, whatever the source says."""

MISSING = frozenset({"nan", "n/a", "#n/a", "na", "null"})
"""What programs write for a value that is missing."""

LABEL_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan}
"""What a multilabel column may hold."""


@dataclass(frozen=True)
class Manifest:
    """One row per image.

    Attributes:
        paths: as the table writes them.
        files: where they are.
        targets: int64 (N,) index into `class_names`, or float32 (N, K) of 1, 0 and NaN (unknown) in multilabel.
        class_names: in binary the last is the positive class.
        task: binary, multiclass or multilabel.
        patients: (N,) texts, or None.
        splits: (N,) train, val or test as given, or None.
        more_groups: column → (N,) texts of what else belongs together; an empty text is unknown.
        metadata: (N, …) texts of all other columns.
    """

    paths: tuple[str, ...]
    files: tuple[Path, ...]
    targets: np.ndarray
    class_names: tuple[str, ...]
    task: str
    patients: np.ndarray | None
    splits: np.ndarray | None
    more_groups: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """Number of classes or labels."""
        return len(self.class_names)

    def groups(self) -> np.ndarray:
        """Return what belongs together by patient and by every other column of groups, (N,)."""
        groups = self.patients if self.patients is not None else np.asarray(self.paths)
        sets = [rows for values in self.more_groups.values() for rows in sets_of(values) if values[rows[0]]]
        return joined(groups, sets)

    def subset(self, rows: np.ndarray) -> "Manifest":
        """Return some of the rows."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            files=tuple(self.files[row] for row in rows),
            targets=self.targets[rows],
            patients=self.patients[rows] if self.patients is not None else None,
            splits=self.splits[rows] if self.splits is not None else None,
            more_groups={column: values[rows] for column, values in self.more_groups.items()},
            metadata=self.metadata.iloc[rows].reset_index(drop=True) if len(self.metadata) else self.metadata,
        )

    def label_text(self, row: int) -> str:
        """Return a row's class, or the names of its positive labels, as text."""
        if self.task != "multilabel":
            return self.class_names[int(self.targets[row])]
        positive = [name for name, value in zip(self.class_names, self.targets[row], strict=True) if value == 1]
        return ", ".join(positive) or "none"

    def digest(self) -> str:
        """Return a SHA-256 over paths, targets, classes and patients; not over the images."""
        digest = hashlib.sha256("\x1f".join(self.class_names).encode())
        patients = self.patients if self.patients is not None else [""] * len(self)
        for path, target, patient in zip(self.paths, self.targets.tolist(), patients, strict=True):
            digest.update(f"\x1e{path}\x1f{target}\x1f{patient}".encode())
        return digest.hexdigest()


def read_manifest(
    source: Path,
    *,
    image_root: Path | None = None,
    path_column: str = "path",
    label_columns: Sequence[str] = ("label",),
    patient_column: str | None = None,
    usual_patient_column: str = "patient_id",
    group_columns: Sequence[str] = (),
    split_column: str | None = None,
    task: str = "auto",
    class_names: Sequence[str] | None = None,
    for_training: bool = True,
    allow_outside_root: bool = False,
) -> Manifest:
    """Read and validate a table or a folder.

    Args:
        source: a CSV (comma, semicolon or tab), or a folder with one sub-folder per class, or with train, val and test
            folders of class folders.
        image_root: what the paths of a CSV are relative to; None: the CSV's folder.
        path_column: column of the paths.
        label_columns: one column of class names, or several of 1, 0 and blank.
        patient_column: None: the usual one, if there is one.
        usual_patient_column: used where it exists and no other is named.
        group_columns: more columns whose images belong together.
        split_column: None: `split` if there is one; `none`: a split in the source is ignored.
        task: auto, binary, multiclass or multilabel.
        class_names: their order; None: sorted.
        for_training: False: a split in the source is ignored, and a label's columns need not hold both 1 and 0.
        allow_outside_root: allow paths that leave the image root.

    Raises:
        DataError: with everything that is wrong.
    """
    if source.is_dir():
        table, places = read_folder(source)
        image_root, path_column, label_columns = source, "path", ["label"]
    elif source.is_file():
        table, places = read_csv(source)
    else:
        raise DataError(f"data.source must be a CSV or a folder of class folders; there is no {source}")
    reader = _Reader(table, places, source, image_root or source.parent, allow_outside_root, for_training)
    patient_column = patient_column or (usual_patient_column if usual_patient_column in table else None)
    split_column = split_column or ("split" if "split" in table else None)
    if not for_training or split_column == NO_SPLIT:
        split_column = None
    named = [path_column, *label_columns, *group_columns, *(c for c in (patient_column, split_column) if c)]
    if reader.columns_exist(named):
        paths, files = reader.paths(path_column)
        targets, names, found_task = reader.labels(list(label_columns), task, class_names)
        patients = reader.patients(patient_column)
        splits = reader.splits(split_column, targets, names)
        more_groups = {column: reader.groups(column) for column in group_columns}
        reader.finish()
        metadata = table.drop(columns=[column for column in table if column in {*named, "split"}])
        return Manifest(paths, files, targets, names, found_task, patients, splits, more_groups, metadata)
    reader.finish()
    raise AssertionError("a missing column is a fault")


class _Reader:
    """Reads a table column by column and collects what is wrong."""

    def __init__(
        self,
        table: pd.DataFrame,
        places: list[str],
        source: Path,
        root: Path,
        allow_outside_root: bool,
        for_training: bool,
    ) -> None:
        self.table = table
        self.places = places
        self.source = source
        self.root = root
        self.allow_outside_root = allow_outside_root
        self.for_training = for_training
        self.faults: list[str] = []

    def finish(self) -> None:
        if self.faults:
            raise DataError(listed(f"{self.source} cannot be used:", self.faults))

    def columns_exist(self, names: Sequence[str]) -> bool:
        missing = [name for name in names if name not in self.table]
        for name in missing:
            near = difflib.get_close_matches(name, [str(c) for c in self.table.columns], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            found = ", ".join(repr(str(c)) for c in self.table.columns[:20])
            self.faults.append(f"there is no column {name!r}{hint} Its columns are {found}")
        return not missing

    def paths(self, column: str) -> tuple[tuple[str, ...], tuple[Path, ...]]:
        paths = tuple(self.table[column])
        root = self.root.resolve()
        files, missing, outside = [], [], []
        seen: dict[str, int] = {}
        for row, path in enumerate(paths):
            if not path or "\0" in path:
                self.faults.append(f"{self.places[row]}: the path {'holds NUL' if path else 'is empty'}")
                continue
            try:
                file = (root / path).resolve()
                exists = file.is_file()
            except (OSError, RuntimeError):  # a name that is too long, or a loop of links
                missing.append(f"{self.places[row]}: {path}")
                continue
            if not self.allow_outside_root and not file.is_relative_to(root):
                outside.append(f"{self.places[row]}: {path}")
            elif not exists:
                missing.append(f"{self.places[row]}: {path}")
            elif str(file) in seen:
                self.faults.append(f"{self.places[row]}: {path} is the same image as {self.places[seen[str(file)]]}")
            seen.setdefault(str(file), row)
            files.append(file)
        allow = "which needs data.allow_outside_root"
        self._count(f"images leave the image folder {self.root} by .., a link or an absolute path, {allow}", outside)
        hint = "; paths need / instead of \\" if any("\\" in place for place in missing) else ""
        self._count(f"images do not exist below {self.root} (see data.image_root{hint})", missing)
        return paths, tuple(files)

    def _count(self, text: str, rows: list[str]) -> None:
        if rows:
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            self.faults.append(f"{len(rows)} of {len(self.table)} {text}: {'; '.join(rows[:3])}{more}")

    def labels(
        self, columns: list[str], task: str, class_names: Sequence[str] | None
    ) -> tuple[np.ndarray, tuple[str, ...], str]:
        several = len(columns) > 1 or task == "multilabel"
        if several and task in ("binary", "multiclass"):
            self.faults.append(f"data.task is {task}, but {len(columns)} label columns mean multilabel")
        return self._several(columns, class_names) if several else self._single(columns[0], task, class_names)

    def _single(
        self, column: str, task: str, class_names: Sequence[str] | None
    ) -> tuple[np.ndarray, tuple[str, ...], str]:
        labels = list(self.table[column])
        self._count(f"rows have no {column}", [self.places[row] for row, label in enumerate(labels) if not label])
        found = sorted({label for label in labels if label})
        names = tuple(class_names) if class_names is not None else tuple(found)
        if class_names is None:
            self._doubtful(column, found)
        unknown = [label for label in found if label not in names]
        if unknown:
            counts = Counter(labels)
            rows = ", ".join(f"{label!r} ({counts[label]} rows)" for label in unknown[:10])
            self.faults.append(f"the classes are {', '.join(map(repr, names))}, but {column} also holds {rows}")
        if len(names) < 2:
            self.faults.append(
                f"at least two classes are needed, found {', '.join(map(repr, names)) or 'none'} in {column}"
            )
        if len(names) > 100 and class_names is None:
            self.faults.append(f"{column} holds {len(names)} different values: is it the column of classes?")
        found_task = "binary" if len(names) == 2 else "multiclass"
        if task not in ("auto", found_task):
            self.faults.append(f"data.task is {task}, but there are {len(names)} classes")
        index = {name: i for i, name in enumerate(names)}
        return np.array([index.get(label, 0) for label in labels], dtype=np.int64), names, found_task

    def _doubtful(self, column: str, found: Sequence[str]) -> None:
        missing = [repr(label) for label in found if label.lower() in MISSING]
        if missing:
            self.faults.append(
                f"{column} holds {', '.join(missing)}, which mostly means that a label is missing: remove those rows, "
                "or name all classes in data.class_names"
            )
        spellings: dict[str, list[str]] = {}
        for label in found:
            spellings.setdefault(label.casefold(), []).append(label)
        for same in spellings.values():
            if len(same) > 1:
                self.faults.append(
                    f"{column} spells a class in {len(same)} ways, {', '.join(map(repr, same))}: make them one, or "
                    "name all classes in data.class_names"
                )

    def _several(
        self, columns: list[str], class_names: Sequence[str] | None
    ) -> tuple[np.ndarray, tuple[str, ...], str]:
        if class_names is not None and list(class_names) != columns:
            self.faults.append(f"data.class_names must be the label columns {columns}, found {list(class_names)}")
        targets = np.full((len(self.table), len(columns)), np.nan, dtype=np.float32)
        for k, column in enumerate(columns):
            wrong = []
            for row, value in enumerate(self.table[column]):
                if value in LABEL_VALUES:
                    targets[row, k] = LABEL_VALUES[value]
                else:
                    wrong.append(f"{self.places[row]}: {value!r}")
            self._count(f"rows must hold 1, 0 or nothing (unknown) in {column}", wrong)
            if self.for_training and not wrong and not {0.0, 1.0} <= set(targets[:, k].tolist()):
                self.faults.append(f"{column} must hold both 1 and 0, found {sorted(set(self.table[column]))}")
        return targets, tuple(columns), "multilabel"

    def patients(self, column: str | None) -> np.ndarray | None:
        if column is None:
            return None
        unknown = [self.places[row] for row, p in enumerate(self.table[column]) if not p or p.lower() in MISSING]
        self._count(f"rows have no {column}", unknown)
        return self.table[column].to_numpy(dtype=str)

    def groups(self, column: str) -> np.ndarray:
        return np.array(["" if value.lower() in MISSING else value for value in self.table[column]])

    def splits(self, column: str | None, targets: np.ndarray, names: tuple[str, ...]) -> np.ndarray | None:
        if column is None:
            return None
        values = [SPLIT_NAMES.get(value.lower()) for value in self.table[column]]
        wrong = [
            f"{self.places[row]}: {self.table[column][row]!r}" for row, value in enumerate(values) if value is None
        ]
        self._count(f"rows must hold train, val or test in {column}", wrong)
        splits = np.array([value or "" for value in values])
        if not wrong:
            self.faults.extend(split_faults(splits, targets, names))
        return splits


def sets_of(values: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each value that occurs more than once, in order of their first rows.

    >>> [rows.tolist() for rows in sets_of(np.array([7, 1, 7, 2, 1]))]
    [[0, 2], [1, 4]]
    """
    _, members = np.unique(values, return_inverse=True)
    order = np.argsort(members, kind="stable")
    ends = np.cumsum(np.bincount(members))[:-1]
    return sorted((rows for rows in np.split(order, ends) if len(rows) > 1), key=lambda rows: int(rows[0]))


def joined(groups: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Join groups that share a set of rows, and whatever hangs together through them.

    Args:
        groups: (N,), rows with equal values belong together.
        sets: rows that belong together besides.

    Returns:
        (N,): each row's group, or the first one that it was joined with.

    >>> joined(np.array(["a", "b", "c", "d"]), [np.array([1, 3])]).tolist()
    ['a', 'b', 'c', 'b']
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    starts = np.concatenate([np.full(max(0, len(rows) - 1), rows[0]) for rows in sets] or [np.zeros(0, dtype=int)])
    ends = np.concatenate([rows[1:] for rows in sets] or [np.zeros(0, dtype=int)])
    if not len(starts):
        return groups
    edges = coo_array((np.ones(len(starts)), (members[starts], members[ends])), shape=(len(first), len(first)))
    _, parts = connected_components(edges, directed=False)
    leader = np.full(parts.max() + 1, len(groups))
    np.minimum.at(leader, parts, first)
    return groups[leader[parts[members]]]


def split_faults(splits: np.ndarray, targets: np.ndarray, class_names: Sequence[str]) -> Iterator[str]:
    """Yield which classes a split lacks; leaks between splits are the audit's.

    Args:
        splits: (N,) train, val or test.
        targets: (N,) or (N, K).
        class_names: names of the classes.
    """
    for split in ("train", "val", "test"):
        chosen = targets[splits == split]
        if not len(chosen):
            yield f"the split {split} has no images (to have medxfer split by patient: --data.split_column none)"
            continue
        positive = (chosen == 1).sum(axis=0) if targets.ndim == 2 else np.bincount(chosen, minlength=len(class_names))
        lacking = [name for name, count in zip(class_names, positive, strict=True) if not count]
        if lacking:
            yield f"the split {split} has no image of {', '.join(map(repr, lacking))}"
