"""Cells: each vector is in the nearest one, near vectors share one, and the size of a step changes nothing."""

import numpy as np
import pytest

from medxfer.data import cells as module
from medxfer.data.cells import Cells


def vectors(size: int = 3000, groups: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around a few far centres, and which centre each is around."""
    rng = np.random.default_rng(0)
    group = rng.integers(groups, size=size)
    return (10 * rng.normal(size=(groups, 8))[group] + rng.normal(size=(size, 8))).astype(np.float32), group


def distances(found: Cells, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, np.newaxis].astype(float) - found.centres, axis=2)


def test_there_is_a_cell_for_every_hundred_vectors_and_fewer_where_cells_would_take_the_time():
    points, _ = vectors()
    assert len(Cells.fit(points)) == 30
    assert len(Cells.fit(points[:40])) == 1
    assert len(Cells.fit(points[:2])) == 1


def test_every_vector_is_a_member_of_its_nearest_cell_once():
    points, _ = vectors()
    found = Cells.fit(points)
    members = found.members(points)
    assert sorted(np.concatenate(members).tolist()) == list(range(len(points)))
    expected = distances(found, points).argmin(axis=1)
    for cell, rows in enumerate(members):
        assert (expected[rows] == cell).all()
        assert (np.diff(rows) > 0).all()


def test_the_nearest_cells_are_those_of_all_distances():
    points, _ = vectors(200)
    found = Cells.fit(vectors()[0])
    expected = np.argsort(distances(found, points), axis=1)[:, :4]
    assert np.array_equal(np.sort(found.nearest(points, 4), axis=1), np.sort(expected, axis=1))
    assert found.nearest(points, 1000).shape == (200, len(found))


def test_vectors_around_one_centre_are_in_its_cells():
    points, group = vectors()
    found = Cells.fit(points)
    near = Cells(np.stack([points[group == k].mean(axis=0) for k in range(12)])).nearest(found.centres, 1)[:, 0]
    assert (near[found.nearest(points, 1)[:, 0]] == group).mean() > 0.99


def test_learning_brings_the_centres_nearer_to_the_vectors(monkeypatch):
    points, _ = vectors()
    learnt = distances(Cells.fit(points), points).min(axis=1).mean()
    monkeypatch.setattr(module, "ROUNDS", 0)
    assert learnt < 0.95 * distances(Cells.fit(points), points).min(axis=1).mean()


def test_equal_vectors_share_a_cell_and_leave_others_empty():
    found = Cells.fit(np.ones((1000, 4), dtype=np.float32))
    assert sorted(len(rows) for rows in found.members(np.ones((1000, 4)))) == [0] * 9 + [1000]
    assert np.isfinite(found.centres).all()


@pytest.mark.parametrize("at_once", [1, 700, 100_000])
def test_the_size_of_a_step_changes_nothing(monkeypatch, at_once):
    points, _ = vectors(500)
    expected = [rows.tolist() for rows in Cells.fit(points).members(points)]
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    assert [rows.tolist() for rows in Cells.fit(points).members(points)] == expected
