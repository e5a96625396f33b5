"""Patient-grouped, stratified, seeded splits."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medxfer.data.manifest import split_faults
from medxfer.errors import DataError, listed

SPLITS = ("train", "val", "test")


def strata(targets: np.ndarray) -> np.ndarray:
    """Return the class that each image counts for, int64 (N,).

    In multilabel that is the rarest of its positive labels, or K, for none.

    Args:
        targets: int64 (N,), or float (N, K) of 1, 0 and NaN.
    """
    if targets.ndim == 1:
        return targets
    positive = targets == 1
    rarity = positive.sum(axis=0)
    cost = np.where(positive, rarity, np.iinfo(np.int64).max)
    return np.where(positive.any(axis=1), cost.argmin(axis=1), targets.shape[1])


def split_by_group(
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    class_names: Sequence[str],
    tries: int = 100,
) -> np.ndarray:
    """Split so that no group crosses, every class is in every split, and fractions and class balance are close.

    Best of `tries` seeded greedy assignments: groups come in random order, those with the rarest class first, and each
    goes to the split that lacks most of what it holds. The score is the largest deviation, over splits and classes, of
    the images there from their share. A first round gives each split one group of each class, so that it succeeds
    wherever a class has at least as many groups as there are splits, save for entanglements of classes in groups.

    Args:
        targets: int64 (N,) or float (N, K).
        groups: (N,), images with equal values stay together.
        val_fraction: of the images.
        test_fraction: of the images.
        seed: of the order.
        class_names: for messages.
        tries: number of assignments to choose from; fewer for more than 3,000 groups.

    Returns:
        (N,) of train, val and test.

    Raises:
        DataError: a class has fewer groups than there are splits.
    """
    fractions = np.array([1 - val_fraction - test_fraction, val_fraction, test_fraction])
    _, members = np.unique(groups, return_inverse=True)
    counts = _class_counts(targets, members, len(class_names))
    _refuse_too_few(counts, fractions, class_names)
    best, best_score = None, np.inf
    for number in range(max(3, min(tries, 300_000 // len(counts)))):
        rng = np.random.default_rng((seed, number))
        assignment = _assign(counts, fractions, rng)
        score = _deviation(counts, assignment, fractions)
        if score < best_score:
            best, best_score = assignment, score
    if best is None or not np.isfinite(best_score):
        raise DataError(
            f"no split was found that has every class in every split ({tries} tries): too many patients hold several "
            "rare classes at once; join rare classes, or give a split column"
        )
    return np.array(SPLITS)[best[members]]


def split_by_fold(
    targets: np.ndarray, groups: np.ndarray, *, folds: int, fold: int, seed: int, class_names: Sequence[str]
) -> np.ndarray:
    """Split by scikit-learn's `StratifiedGroupKFold`: one fold is the test, the next one validation, the rest training.

    Args:
        targets: int64 (N,) or float (N, K).
        groups: (N,).
        folds: at least 3.
        fold: which one is the test.
        seed: of the order.
        class_names: for messages.

    Returns:
        (N,) of train, val and test.

    Raises:
        DataError: a class is missing from a split, or there are fewer groups than folds.
    """
    number = len(np.unique(groups))
    if number < folds:
        raise DataError(f"data.folds is {folds}, but there are only {number} patients or images")
    _, stratum = np.unique(strata(targets), return_inverse=True)
    fold_of = np.empty(len(groups), dtype=int)
    most = int(np.bincount(stratum).max())
    if most < folds:
        raise DataError(f"data.folds is {folds}, but the largest class has only {most} images; use fewer folds")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # rare classes are judged below, by what each split really holds
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for k, (_, rows) in enumerate(splitter.split(np.zeros(len(groups)), stratum, groups)):
            fold_of[rows] = k
    splits = np.full(len(groups), "train", dtype="<U5")
    splits[fold_of == fold] = "test"
    splits[fold_of == (fold + 1) % folds] = "val"
    check_split(splits, targets, class_names=class_names)
    return splits


def check_split(splits: np.ndarray, targets: np.ndarray, *, class_names: Sequence[str]) -> None:
    """Raise a DataError with every class that a split lacks."""
    faults = list(split_faults(splits, targets, class_names))
    if faults:
        raise DataError(listed("the split cannot be used:", faults))


def split_rows(
    splits: np.ndarray, targets: np.ndarray, patients: np.ndarray | None, *, class_names: Sequence[str]
) -> list[list[str]]:
    """Count images, patients if they are known, and images per class of each split.

    Returns:
        A header and one row per split, of texts.
    """
    rows = [["split", "images", "share", *(["patients"] if patients is not None else []), *class_names]]
    for split in SPLITS:
        chosen = splits == split
        if targets.ndim == 2:
            per_class = (targets[chosen] == 1).sum(axis=0)
        else:
            per_class = np.bincount(targets[chosen], minlength=len(class_names))
        known = [str(len(np.unique(patients[chosen])))] if patients is not None else []
        rows.append([split, str(chosen.sum()), f"{chosen.mean():.1%}", *known, *map(str, per_class)])
    return rows


def split_table(
    splits: np.ndarray, targets: np.ndarray, patients: np.ndarray | None, *, class_names: Sequence[str]
) -> str:
    """Write what `split_rows` counts as lines of text."""
    rows = split_rows(splits, targets, patients, class_names=class_names)
    widths = [7, *(max(8, *(len(row[k]) + 2 for row in rows)) for k in range(1, len(rows[0])))]
    return "\n".join(
        row[0].ljust(widths[0]) + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _class_counts(targets: np.ndarray, members: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class in each group, (G, K), and all images in the last column, (G, K + 1)."""
    one_hot = (targets == 1).astype(np.int64) if targets.ndim == 2 else np.eye(num_classes, dtype=np.int64)[targets]
    counts = np.zeros((members.max() + 1, one_hot.shape[1] + 1), dtype=np.int64)
    np.add.at(counts, members, np.column_stack([one_hot, np.ones(len(members), dtype=np.int64)]))
    return counts


def _refuse_too_few(counts: np.ndarray, fractions: np.ndarray, class_names: Sequence[str]) -> None:
    needed = int((fractions > 0).sum())
    holders = (counts[:, :-1] > 0).sum(axis=0)
    short = [
        f"{name} has {found} of the {needed} patients (or images, without patients) that {needed} splits need"
        for name, found in zip(class_names, holders, strict=True)
        if found < needed
    ]
    if short:
        raise DataError(
            listed("every split needs a patient of every class:", short)
            + "\ncollect more, or join or drop these classes"
        )


def _assign(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign every group to a split, int64 (G,)."""
    groups, columns = counts.shape
    rarity = counts[:, :-1].sum(axis=0).astype(float)
    holders = (counts[:, :-1] > 0).sum(axis=0)
    first = np.where(counts[:, :-1] > 0, rarity, np.inf).min(axis=1)
    order = np.lexsort((rng.random(groups), -counts[:, -1] // max(1, counts[:, -1].max() // 4), first))
    wanted = fractions[:, None] * counts.sum(axis=0)
    have = np.zeros((len(fractions), columns))
    assignment = np.full(groups, -1)
    used = np.flatnonzero(fractions > 0)
    for k in np.argsort(holders, kind="stable"):  # one group of each class for each split, rarest class first
        for split in rng.permutation(used):
            free = [g for g in order if assignment[g] < 0 and counts[g, k] > 0]
            if have[split, k] == 0 and free:
                small = sorted(free, key=lambda g: counts[g, -1])[: max(1, len(free) // 2)]
                group = small[int(rng.integers(len(small)))]
                assignment[group] = split
                have[split] += counts[group]
    scale = np.maximum(counts.sum(axis=0), 1)
    for group in order:
        if assignment[group] >= 0:
            continue
        # What each split lacks of this group's classes, relative to the class and to the split's size.
        lack = (wanted[used] - have[used]) / scale / fractions[used, None]
        split = used[int((lack * (counts[group] > 0)).sum(axis=1).argmax())]
        assignment[group] = split
        have[split] += counts[group]
    return assignment


def _deviation(counts: np.ndarray, assignment: np.ndarray, fractions: np.ndarray) -> float:
    have = np.stack([counts[assignment == split].sum(axis=0) for split in range(len(fractions))])
    if (have[fractions > 0][:, :-1] == 0).any():
        return np.inf
    totals = counts.sum(axis=0)
    shares = np.abs(have / np.maximum(totals, 1) - fractions[:, None])
    return float(2 * shares[:, -1].max() + shares[:, :-1].max())
