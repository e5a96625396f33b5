"""The search proposes what is a changed copy, whatever is compared at a time and whatever it looks at."""

import numpy as np
import pytest
from tqdm import tqdm

from medxfer.data import sketch_search
from medxfer.data.patches import TURNS, cropped, sketch_of, turned
from medxfer.data.sketch_search import CROPS, NEIGHBOURS, SketchSearch
from tests.data.test_patches import texture

TURN = TURNS.index("rotated by 90° clockwise")


def changed(grey: np.ndarray) -> np.ndarray:
    """A copy, cropped, re-exposed and turned."""
    return np.clip(turned(cropped(grey, np.array([0.05, 0.0, 0.05, 0.0])), TURN) * 0.8 + 10, 0, 255)


def patches() -> list[np.ndarray]:
    """Thirty textures, and a changed copy of the first five."""
    plain = [texture(seed) for seed in range(30)]
    return [*plain, *(changed(grey) for grey in plain[:5])]


def queries(greys: list[np.ndarray], rows: list[int]) -> np.ndarray:
    return np.stack(
        [
            [turned(sketch_of(cropped(greys[row], sides)), turn).ravel() for turn in range(8) for sides in CROPS]
            for row in rows
        ]
    )


def propose(greys: list[np.ndarray]) -> list[tuple[int, int, int, float]]:
    rows = np.arange(len(greys))
    search = SketchSearch.fit(lambda row: greys[row], rows)
    targets = search.vectors(np.stack([sketch_of(grey).ravel() for grey in greys]), side=0)
    with tqdm(disable=True) as bar:
        return search.propose(rows, targets, lambda some: queries(greys, list(some)), bar).tolist()


def test_copies_come_first_and_say_how_they_are_turned():
    found = propose(patches())
    assert {(first, second) for first, second, _, _ in found[:5]} == {(row, 30 + row) for row in range(5)}
    undone = {turn for _, _, turn, _ in found[:5]}
    assert undone == {TURNS.index("rotated by 90° counter-clockwise")}
    assert all(first < second for first, second, _, _ in found)
    assert len({(first, second) for first, second, _, _ in found}) == len(found)


def test_others_are_proposed_only_if_they_are_not_unlikely(monkeypatch):
    likely = propose(patches())
    assert min(log_odds for *_, log_odds in likely) > sketch_search.UNLIKELY
    monkeypatch.setattr(sketch_search, "UNLIKELY", -np.inf)
    found = propose(patches())
    assert [one[:3] for one in found[: len(likely)]] == [one[:3] for one in likely]
    assert len(found) >= 35  # each picture's two nearest
    assert found[4][3] > 2 * found[5][3]


def test_rows_may_be_any_numbers():
    greys, rows = patches(), np.arange(35) * 3 + 1
    search = SketchSearch.fit(lambda row: greys[(row - 1) // 3], rows)
    targets = search.vectors(np.stack([sketch_of(grey).ravel() for grey in greys]), side=0)
    with tqdm(disable=True) as bar:
        found = search.propose(rows, targets, lambda some: queries(greys, [(row - 1) // 3 for row in some]), bar)
    assert {(one["first"], one["second"]) for one in found[:5]} == {(1 + 3 * row, 91 + 3 * row) for row in range(5)}


@pytest.mark.parametrize(("queries", "targets"), [(1, 7), (64, 4096), (5, 30)])
def test_the_size_of_a_step_changes_nothing(monkeypatch, queries, targets):
    expected = propose(patches())
    monkeypatch.setattr(sketch_search, "QUERY_CHUNK", queries)
    monkeypatch.setattr(sketch_search, "TARGET_CHUNK", targets)
    found = propose(patches())
    assert [one[:3] for one in found[:5]] == [one[:3] for one in expected[:5]]
    np.testing.assert_allclose([one[3] for one in found[:5]], [one[3] for one in expected[:5]], rtol=1e-3)


def test_few_cells_are_enough_for_copies(monkeypatch):
    """Of 20 cells each sketch of a picture sees five; comparing all with all proposes the same copies."""
    plain = [texture(seed) for seed in range(185)]
    greys = [*plain, *(changed(grey) for grey in plain[:15])]
    monkeypatch.setattr(sketch_search, "UNLIKELY", -np.inf)
    monkeypatch.setattr("medxfer.data.cells.LEAST_PER_CELL", 10)
    few = {one[:3] for one in propose(greys)}
    monkeypatch.setattr(sketch_search, "PROBES", 1000)
    everything = {one[:3] for one in propose(greys)}
    copies = {one for one in everything if one[1] == one[0] + 185}
    assert len(copies) == 15
    assert copies <= few
    assert len(few & everything) < len(everything)  # so that something was left out


def test_many_copies_are_linked_by_few_proposals():
    grey = texture(0)
    greys = [np.clip(grey + np.random.default_rng(k).normal(0, 2, grey.shape), 0, 255) for k in range(40)]
    found = propose([*greys, *(texture(seed) for seed in range(1, 4))])
    inside = [one for one in found if one[1] < 40]
    assert {row for one in inside for row in one[:2]} == set(range(40))
    assert len(inside) <= 40 * (NEIGHBOURS + sketch_search.EARLIEST)
    assert len(inside) < 40 * 39 / 2
