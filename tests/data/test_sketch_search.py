"""The search proposes what is a changed copy, whatever is compared at a time."""

import numpy as np
import pytest
from tqdm import tqdm

from medxfer.data import sketch_search
from medxfer.data.patches import TURNS, cropped, sketch_of, turned
from medxfer.data.sketch_search import CROPS, Proposal, SketchSearch
from tests.data.test_patches import texture

TURN = TURNS.index("rotated by 90° clockwise")


def patches() -> list[np.ndarray]:
    """Thirty textures, and of the first five a copy, cropped, re-exposed and turned."""
    plain = [texture(seed) for seed in range(30)]
    copies = [
        np.clip(turned(cropped(grey, np.array([0.05, 0.0, 0.05, 0.0])), TURN) * 0.8 + 10, 0, 255) for grey in plain[:5]
    ]
    return [*plain, *copies]


def propose() -> list[Proposal]:
    greys = patches()

    def queries(rows: list[int]) -> np.ndarray:
        return np.stack(
            [
                [turned(sketch_of(cropped(greys[row], sides)), turn).ravel() for turn in range(8) for sides in CROPS]
                for row in rows
            ]
        )

    search = SketchSearch.fit(lambda row: greys[row], list(range(len(greys))))
    sketches = {row: sketch_of(grey).astype(np.float16) for row, grey in enumerate(greys)}
    with tqdm(disable=True) as bar:
        return search.propose(sketches, queries, bar)


def test_copies_come_first_and_say_how_they_are_turned():
    found = propose()
    assert {(first, second) for first, second, _, _ in found[:5]} == {(row, 30 + row) for row in range(5)}
    undone = {turn for _, _, turn, _ in found[:5]}
    assert undone == {TURNS.index("rotated by 90° counter-clockwise")}
    assert found[4][3] > 2 * found[5][3]
    assert all(first < second for first, second, _, _ in found)


@pytest.mark.parametrize(("queries", "targets"), [(1, 7), (64, 4096), (5, 30)])
def test_the_size_of_a_step_changes_nothing(monkeypatch, queries, targets):
    expected = propose()
    monkeypatch.setattr(sketch_search, "QUERY_CHUNK", queries)
    monkeypatch.setattr(sketch_search, "TARGET_CHUNK", targets)
    found = propose()
    assert [one[:3] for one in found[:5]] == [one[:3] for one in expected[:5]]
    np.testing.assert_allclose([one[3] for one in found[:5]], [one[3] for one in expected[:5]], rtol=1e-3)
