"""How well each column of metadata predicts the labels, without the image.

What predicts the label here, a network can learn instead of the disease: the view, the scanner, the hospital that sent
the sick (Zech et al. 2018, PLOS Medicine 15:e1002683).
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import OneHotEncoder

from medxfer.data.manifest import MISSING
from medxfer.data.splits import strata

ALL_TOGETHER = "(all together)"
"""Name of the model on all candidates."""

FOLDS = 5
MAX_TRAINING_ROWS = 5_000
"""Of each side of a label, in each fold."""

MAX_BINS = 16
ROWS_PER_BIN = 8
FREQUENT = 0.05
"""A number with this share of the rows is a category of its own: widths and ages cluster at odd values."""

MAX_CATEGORIES = 100
LEAST_GROUPS = 3
"""A text of fewer patients would name them; it is one of the rare texts."""

PENALTY_C = 0.5
PENALTY_C_TOGETHER = 0.1
"""Inverse ridge penalties, with the smaller side of a label weighing 1 per row."""

MAX_NEWTON_COLUMNS = 500
"""Newton's steps are few, but each costs the cube of the columns."""

NUMBER = re.compile(r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d{1,3})?)\s*([^\W\d]{0,8}|%)")
YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
"""The units of a DICOM age, such as 058Y."""

DATES = ("ISO8601", "%Y%m%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y")


def predict_from_metadata(
    table: pd.DataFrame, targets: np.ndarray, groups: np.ndarray, *, task: str, seed: int
) -> dict[str, np.ndarray]:
    """Predict each class from each column alone, and from all of them, by cross-validation over patients.

    A column becomes categories, of which a missing value is one: texts; numbers that are frequent; bins of the other
    numbers, with a line and a parabola over their ranks. A ridge logistic regression, in which both sides of a label
    weigh the same, predicts one class against the rest. Texts that are numbers, ages of DICOM ("058Y") or dates count
    as numbers. Texts that fewer than 3 patients have, or that mostly do not repeat (file names, UIDs), are one
    category, so that they tell only whether there is a text. Columns in which fewer than two patients differ from the
    rest are left out.

    The folds' models differ, and they differ against the rows that they are tried on: a fold that holds more than its
    share of a class was predicted by a model that saw less of it. Pooled, their scores rank below chance where nothing
    is to be found (Parker, Günter and Bedo 2007, BMC Bioinformatics 8:326). Each score is therefore given as its rank
    among its own model's training rows, both sides weighing the same.

    Each model learns from at most 5,000 rows of either side of a label, drawn with the seed; all rows are predicted.

    Args:
        table: (N, F), numbers or texts.
        targets: int64 (N,), or float32 (N, K) of 1, 0 and NaN (unknown) in multilabel.
        groups: (N,), patients: never in training and held-out rows at once.
        task: binary, multiclass or multilabel.
        seed: of folds and drawn rows.

    Returns:
        Per candidate float64 (N, C), or (N, K) in multilabel, 0..1: ranks within each class (column), for its AUROC;
        they are no calibrated probabilities. 0.5 where a class could not be learned. `(all together)` with two or more
        candidates. Empty where fewer than two patients stand on either side of each label.
    """
    members = pd.factorize(np.asarray(groups), use_na_sentinel=False)[0]
    truth = _one_against_rest(np.asarray(targets), task=task)
    folds = _folds(np.asarray(targets), members, seed=seed) if _can_be_judged(truth, members) else None
    if folds is None:
        return {}
    designs = {str(name): _design(table.iloc[:, column], members) for column, name in enumerate(table.columns)}
    known = {name: design for name, design in designs.items() if design is not None}
    found = {name: _held_out_ranks(design, truth, folds, c=PENALTY_C, seed=seed) for name, design in known.items()}
    if len(known) > 1:
        together = sparse.csr_array(sparse.hstack(list(known.values()), format="csr"))
        found[ALL_TOGETHER] = _held_out_ranks(together, truth, folds, c=PENALTY_C_TOGETHER, seed=seed)
    if task == "binary":
        found = {name: np.column_stack([1 - ranks, ranks]) for name, ranks in found.items()}
    return found


def metadata_columns(table: pd.DataFrame, *, used: Sequence[str]) -> list[str]:
    """Return the columns of a label table that may predict its labels.

    These have at least two values (a blank is one) and do not name single images: more than half of their texts
    repeat, or they are numbers or dates. Whole numbers that never repeat are counted as names, dates excepted.

    Args:
        table: of texts, as `read_csv` returns.
        used: columns of paths, labels, patients and splits.
    """
    return [
        str(name)
        for column, name in enumerate(table.columns)
        if name not in used and _is_candidate(table.iloc[:, column])
    ]


def _is_candidate(values: pd.Series) -> bool:
    codes, texts = _factorized(values)
    if len(texts) + (-1 in codes) < 2:
        return False
    filled = (codes >= 0).sum()
    numbers = _numbers(texts)
    if np.isnan(numbers).mean() >= 0.5:
        return len(texts) <= 0.5 * filled
    count_like = all(NUMBER.fullmatch(text) and number % 1 == 0 for text, number in zip(texts, numbers, strict=True))
    return not count_like or len(texts) <= 0.95 * filled or _are_dates(texts)


def _one_against_rest(targets: np.ndarray, *, task: str) -> np.ndarray:
    """Return float64 (N, K) of 1, 0 and NaN; in binary K is 1, for the positive class."""
    if task == "multilabel":
        return targets.astype(np.float64)
    classes = np.arange(int(targets.max(initial=0)) + 1) if task == "multiclass" else np.array([1])
    return (targets[:, np.newaxis] == classes).astype(np.float64)


def _can_be_judged(truth: np.ndarray, members: np.ndarray) -> bool:
    """Return whether at least one label has two patients on either side."""
    sides = [[len(np.unique(members[truth[:, k] == side])) for side in (0, 1)] for k in range(truth.shape[1])]
    return any(min(counts) > 1 for counts in sides)


def _folds(targets: np.ndarray, members: np.ndarray, *, seed: int) -> np.ndarray | None:
    """Return each row's fold, (N,), or None: there are too few patients.

    A patient counts for its rarest class. (`StratifiedGroupKFold` takes 20 s for 100,000 patients.)
    """
    _, stratum = np.unique(strata(targets), return_inverse=True)
    by_size = np.argsort(np.argsort(np.bincount(stratum), kind="stable"))
    of_group = np.full(members.max() + 1, len(by_size))
    np.minimum.at(of_group, members, by_size[stratum])
    folds = min(FOLDS, int(np.bincount(of_group).max()))
    if folds < 2:
        return None
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.zeros(len(of_group), dtype=np.int64)
    with warnings.catch_warnings():  # a class that a fold lacks does no harm: scores are ranks among training rows
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(of_group, of_group)):
            fold_of[held_out] = fold
    return fold_of[members]


def _held_out_ranks(
    design: sparse.csr_array, truth: np.ndarray, folds: np.ndarray, *, c: float, seed: int
) -> np.ndarray:
    """Return every row's ranks by the models that did not see its fold, (N, K)."""
    ranks = np.full(truth.shape, 0.5)
    _, columns = design.shape or (0, 0)
    solver = "newton-cholesky" if columns <= MAX_NEWTON_COLUMNS else "lbfgs"
    for fold in range(folds.max() + 1):
        held_out = folds == fold
        shown = design[held_out]
        for k in range(truth.shape[1]):
            rng = np.random.default_rng((seed, fold, k))
            sides = [_at_most(np.flatnonzero(~held_out & (truth[:, k] == side)), rng) for side in (0, 1)]
            smaller = min(len(side) for side in sides)
            if smaller == 0:
                continue
            rows = np.concatenate(sides)
            weights = np.concatenate([np.full(len(side), smaller / len(side)) for side in sides])
            model = LogisticRegression(C=c, solver=solver)
            with warnings.catch_warnings():  # a fit that is not at its end ranks just as well
                warnings.simplefilter("ignore", ConvergenceWarning)
                warnings.simplefilter("ignore", LinAlgWarning)
                model.fit(design[rows], truth[rows, k], sample_weight=weights)
            # Rounded, since ties must stay ties.
            seen, scores = (np.round(model.decision_function(part), 9) for part in (design[rows], shown))
            ranks[held_out, k] = _ranks_among(seen, weights, scores)
    return ranks


def _at_most(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    many = len(rows) > MAX_TRAINING_ROWS
    return np.sort(rng.choice(rows, MAX_TRAINING_ROWS, replace=False)) if many else rows


def _ranks_among(seen: np.ndarray, weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the weight of the seen scores below each score, and half of those that equal it, 0..1."""
    order = np.argsort(seen)
    below = np.concatenate([[0.0], np.cumsum(weights[order])]) / weights.sum()
    left, right = (np.searchsorted(seen[order], scores, side=side) for side in ("left", "right"))
    return np.clip((below[left] + below[right]) / 2, 0.0, 1.0)


def _design(values: pd.Series, members: np.ndarray) -> sparse.csr_array | None:
    """Return what a column says as numbers, (N, columns); None: nothing, or too little to learn from."""
    numbers, texts = _read(values)
    cells, weights = _cells(numbers, texts, members)
    largest = np.bincount(cells).argmax()
    if len(np.unique(members[cells != largest])) < 2:
        return None
    measured = ~np.isnan(numbers)
    line = np.zeros(len(cells))
    line[measured] = pd.Series(numbers[measured]).rank(pct=True).to_numpy() - 0.5
    one_hot = OneHotEncoder(dtype=np.float64).fit_transform(cells[:, np.newaxis])
    shapes = np.column_stack([2 * line, 4 * line**2])
    return sparse.csr_array(sparse.hstack([sparse.csr_array(one_hot) * weights, shapes], format="csr"))


def _cells(numbers: np.ndarray, texts: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort rows into categories.

    Args:
        numbers: (N,), NaN where there is none.
        texts: int (N,), which text, −1 where there is none.
        members: (N,), which patient.

    Returns:
        int (N,): 0 missing, 1 a rare text, then texts, frequent numbers and bins; and the weights of those that occur.
        Neighbouring bins mostly agree, so that each counts for less and the line through them for more.
    """
    named = texts >= 0
    cells = named.astype(np.int64)
    cells[named] += 1 + _shared_texts(texts[named], members[named])
    measured = ~np.isnan(numbers)
    values, place, counts = np.unique(numbers[measured], return_inverse=True, return_counts=True)
    frequent = counts >= FREQUENT * len(numbers)
    first = cells.max(initial=0) + 1
    first_bin = first + frequent.sum()
    rest = numbers[measured][~frequent[place]]
    bins = min(MAX_BINS, max(1, len(rest) // ROWS_PER_BIN))
    shares = np.arange(1, bins) / bins
    edges = np.unique(np.quantile(rest, shares, method="lower")) if len(rest) else rest
    own = np.where(frequent, first + np.cumsum(frequent) - 1, first_bin + np.searchsorted(edges, values, side="right"))
    cells[measured] = own[place]
    return cells, np.where(np.unique(cells) < first_bin, 1.0, 0.5)


def _shared_texts(texts: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Number the texts that enough patients share by how many do, from 0; −1 for the rare ones, (n,)."""
    distinct, texts = np.unique(texts, return_inverse=True)
    if len(distinct) > 0.5 * len(texts):
        return np.full(len(texts), -1)
    pairs = np.unique(np.stack([texts, members]), axis=1)
    patients = np.bincount(pairs[0], minlength=len(distinct))
    kept = np.argsort(-patients, kind="stable")[:MAX_CATEGORIES]
    kept = kept[patients[kept] >= LEAST_GROUPS]
    number = np.full(len(distinct), -1)
    number[kept] = np.arange(len(kept))
    return number[texts]


def _read(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's numbers, (N,) with NaN for none, and which of its other texts each row has, −1 for none."""
    kind = values.dtype.kind if isinstance(values.dtype, np.dtype) else ""
    if kind and kind in "biufmM":
        numbers = values.astype("int64" if kind in "mM" else "float64").to_numpy(dtype=np.float64, copy=True)
        numbers[values.isna().to_numpy() | ~np.isfinite(numbers)] = np.nan
        return numbers, np.full(len(values), -1)
    codes, texts = _factorized(values)
    if not len(texts):
        return np.full(len(values), np.nan), codes
    numbers = np.where(codes >= 0, _numbers(texts)[codes], np.nan)
    return numbers, np.where(np.isnan(numbers), codes, -1)


def _factorized(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return which of the distinct texts each row has, −1 for a missing value, and these texts."""
    blank = values.isna().to_numpy(dtype=bool)
    stripped = ["" if gone else str(value).strip() for value, gone in zip(values.astype(object), blank, strict=True)]
    known = [text if text and text.casefold() not in MISSING else None for text in stripped]
    codes, texts = pd.factorize(np.array(known, dtype=object))
    return codes, [str(text) for text in texts]


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """Read texts that are numbers, with the unit that most of them have, DICOM ages in years, or dates in days.

    Returns:
        float64 (len(texts),), NaN for all others.
    """
    found = [NUMBER.fullmatch(text) for text in texts]
    units = [match.group(2).casefold() if match else "" for match in found]
    usual = max(Counter(unit for unit in units if unit).items(), key=lambda pair: pair[1], default=("", 0))[0]
    factors = {"": 1.0, **(YEARS if usual in YEARS else {usual: 1.0})}
    numbers = np.array(
        [
            float(match.group(1).replace(",", ".")) * factors.get(unit, np.nan) if match else np.nan
            for match, unit in zip(found, units, strict=True)
        ]
    )
    numbers[~np.isfinite(numbers)] = np.nan
    others = [place for place, number in enumerate(numbers) if np.isnan(number)]
    numbers[others] = _dates([texts[place] for place in others])
    return numbers


def _dates(texts: Sequence[str]) -> np.ndarray:
    """Read dates as days since 1970, in the form that most have; all NaN if fewer than nine tenths are dates."""
    best = np.full(len(texts), np.nan)
    for days in _in_each_form(texts):
        if np.isfinite(days).sum() > np.isfinite(best).sum():
            best = days
    return best if np.isfinite(best).sum() >= 0.9 * len(texts) else np.full(len(texts), np.nan)


def _are_dates(texts: Sequence[str]) -> bool:
    """Return whether nearly all texts are dates without a separator, of our times, such as 20240131."""
    days = pd.to_datetime(pd.Series(texts, dtype=object), format="%Y%m%d", errors="coerce")
    return bool(days.dt.year.between(1900, 2100).mean() >= 0.95)


def _in_each_form(texts: Sequence[str]) -> Iterator[np.ndarray]:
    for form in DATES:
        moments = pd.to_datetime(pd.Series(texts, dtype=object), format=form, errors="coerce", utc=True)
        seconds = moments.dt.tz_localize(None).to_numpy(dtype="datetime64[s]")
        yield np.where(np.isnat(seconds), np.nan, seconds.astype(np.int64) / 86_400)
