"""Augmentation of batches: a pure function of picture and seed that does what albumentations does, as often."""

import random

import cv2
import numpy as np
import pytest
import torch
from scipy import stats

from medxfer.data.augment import RANGES, Exposure, build_augmentation, build_pipeline
from medxfer.data.batch_augment import (
    COLOUR_NUMBERS,
    MOVEMENT_NUMBERS,
    Exposures,
    Moves,
    Tints,
    build_batch_augmentation,
    draw_exposures,
    draw_moves,
    draw_tints,
    expose,
    move,
    tint,
    uniforms,
)

CHANNELS = {"xray": 1, "dermoscopy": 3}
SIZE = 61
DRAWS = 1500

LEAST_P = 1e-3
"""Of a comparison of draws; all seeds are fixed, so that it is reached always or never."""

MEAN_ERROR = 0.05 if int(cv2.__version__.split(".")[0]) >= 5 else 1.0
"""Grey levels on independent pixels; before version 5, OpenCV rounds the places that it reads to 1/32 pixel."""


def _noise(count: int, channels: int, size: int = SIZE) -> np.ndarray:
    """Return pictures of independent pixels, the hardest for interpolation, uint8 (B, S, S, C)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def _picture(channels: int, size: int = 40) -> np.ndarray:
    """Return a smooth picture of several colours with an edge, uint8 (S, S, C)."""
    y, x = np.mgrid[0:size, 0:size] / size
    levels = (60 + 120 * x + 40 * y, 150 - 70 * x, 90 + 60 * np.hypot(x - 0.5, y - 0.4))[:channels]
    picture = np.stack(levels, axis=-1)
    picture[size // 4 : size // 2, size // 3 : size // 2] *= 0.5
    return picture.astype(np.uint8)


def _batch(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


def _pictures(batch: torch.Tensor) -> np.ndarray:
    return batch.permute(0, 2, 3, 1).numpy()


def _seeds(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**32, count, dtype=np.uint32)


def _albumentations(
    modality: str, strength: float, pictures: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Moves, Exposures | Tints]:
    """Return what albumentations makes of pictures, which it moved, and what it drew for that."""
    pipeline = build_pipeline(modality, strength)
    results, drawn = [], []
    for seed, picture in enumerate(pictures):
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        results.append(pipeline(image=picture)["image"].reshape(picture.shape))
        drawn.append({type(transform).__name__: transform.params for transform in pipeline.transforms})
    affine = [row["Affine"] for row in drawn]  # what was not applied has no parameters
    middle = np.array([(pictures.shape[1] - 1) / 2] * 2 + [1])
    moves = Moves(
        mirrored=np.array([[bool(row.get(f"{axis}Flip")) for axis in ("Horizontal", "Vertical")] for row in drawn]),
        rotation_deg=np.array([row.get("rotate", 0) for row in affine]),
        scale=np.array([list(row.get("scale", {"x": 1, "y": 1}).values()) for row in affine]),
        shift_px=np.array([(row.get("matrix", np.eye(3)) @ middle - middle)[:2] for row in affine]),
    )
    moved = np.array([bool(row) for row in affine])
    changed = [row["RandomBrightnessContrast" if modality == "xray" else "ColorJitter"] for row in drawn]
    if modality == "xray":
        return np.stack(results), moved, moves, Exposures(
            factor=np.array([row.get("alpha", 1) for row in changed]),
            offset=np.array([row.get("beta", 0) for row in changed]),
        )  # fmt: skip
    return np.stack(results), moved, moves, Tints(
        changed=np.array([bool(row) for row in changed]),
        factors=np.array([[row.get(name, 1) for name in ("brightness", "contrast", "saturation")] for row in changed]),
        hue=np.array([row.get("hue", 0) for row in changed]),
        order=np.array([row.get("order", range(4)) for row in changed]),
    )  # fmt: skip


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [64, 75])  # a middle between pixels, and one on a pixel
@pytest.mark.parametrize(("modality", "channels"), [("xray", 1), ("xray", 3), ("dermoscopy", 3), ("dermoscopy", 1)])
def test_with_the_same_parameters_the_result_is_that_of_albumentations(modality, channels, size, strength):
    pictures = _noise(40, channels, size)
    expected, _, moves, changes = _albumentations(modality, strength, pictures)
    found = move(_batch(pictures), moves, reflect=RANGES[modality](strength)[0].reflect)
    found = expose(found, changes) if isinstance(changes, Exposures) else tint(found, changes)
    # OpenCV cuts HSV to whole levels where its processor works on many pixels at once, and rounds the rest of a row
    error = np.abs(_pictures(found).astype(int) - expected)[:, :, :64]
    assert error.mean() < MEAN_ERROR
    assert np.mean(error <= 2) > (0.999 if MEAN_ERROR < 0.1 else 0.9)


def test_a_batch_is_not_changed_and_the_result_is_of_its_kind():
    for modality, channels in (("xray", 1), ("xray", 3), ("dermoscopy", 3)):
        augment = build_batch_augmentation(modality, 1.0)
        assert augment is not None
        images = _batch(_noise(5, channels))
        before = images.clone()
        found = augment(images, _seeds(5))
        assert found.dtype == torch.uint8
        assert found.shape == images.shape
        assert not torch.equal(found, images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_the_result_depends_on_the_picture_and_its_seed_only(modality):
    augment, again = build_batch_augmentation(modality, 1.0), build_batch_augmentation(modality, 1.0)
    assert augment is not None
    assert again is not None
    images, seeds = _batch(_noise(23, CHANNELS[modality])), _seeds(23)
    seeds[:2] = 0, 2**32 - 1
    together = augment(images, seeds)
    order = np.random.default_rng(1).permutation(23)
    assert torch.equal(again(images[order], seeds[order]), together[order])
    for index in range(23):
        assert torch.equal(augment(images[index : index + 1], seeds[index : index + 1])[0], together[index])
    same = augment(images[:1].expand(2, -1, -1, -1), seeds[:2])
    assert not torch.equal(same[0], same[1])


def test_a_batch_without_any_change_of_colour_is_only_moved():
    images = _batch(_noise(3, 3))
    drawn = Tints(np.zeros(3, bool), np.full((3, 3), 0.5), np.full(3, 0.1), np.tile(np.arange(4), (3, 1)))
    assert torch.equal(tint(images, drawn), images)


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_strength_0_is_no_augmentation(modality):
    assert build_batch_augmentation(modality, 0) is None


def test_the_generator_is_splitmix64():
    # the first outputs of the reference implementation, prng.di.unimi.it/splitmix64.c, for the seed 1234567
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    np.testing.assert_array_equal(uniforms(np.array([1234567], np.uint32), 5)[0], [(z >> 11) / 2**53 for z in outputs])


def test_numbers_of_neighbouring_seeds_are_uniform_and_independent():
    numbers = uniforms(np.arange(20_000, dtype=np.uint32), 17)
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > LEAST_P
    correlations = np.corrcoef(np.concatenate([numbers[1:], numbers[:-1]], axis=1), rowvar=False)
    assert np.abs(correlations - np.eye(34)).max() < 5 / np.sqrt(len(numbers))


def _drawn(modality: str, count: int) -> tuple[np.ndarray, Moves, Exposures | Tints]:
    """Return which pictures are moved, and what is drawn for them."""
    movement, intensity = RANGES[modality](1.0)
    numbers = uniforms(_seeds(count), MOVEMENT_NUMBERS + COLOUR_NUMBERS)
    rest = numbers[:, MOVEMENT_NUMBERS:]
    changes = draw_exposures(intensity, rest) if isinstance(intensity, Exposure) else draw_tints(intensity, rest)
    return numbers[:, 2] < movement.p, draw_moves(movement, numbers[:, :MOVEMENT_NUMBERS], size_px=SIZE), changes


@pytest.fixture(scope="module", params=sorted(RANGES))
def draws(request: pytest.FixtureRequest) -> list[tuple[np.ndarray, Moves, Exposures | Tints]]:
    """Which pictures were moved, and what was drawn: by this module, and by albumentations, at strength 1."""
    pictures = _noise(1, CHANNELS[request.param]).repeat(DRAWS, axis=0)
    return [_drawn(request.param, DRAWS), _albumentations(request.param, 1.0, pictures)[1:]]


def _assert_same_distribution(*samples: np.ndarray) -> None:
    assert stats.ks_2samp(*samples).pvalue > LEAST_P


def _assert_as_often(*samples: np.ndarray) -> None:
    kinds = np.unique(np.concatenate(samples), axis=0)
    counts = [[np.sum((sample == kind).reshape(len(sample), -1).all(axis=1)) for kind in kinds] for sample in samples]
    assert len(kinds) == 1 or stats.chi2_contingency(counts).pvalue > LEAST_P


def test_pictures_are_moved_as_often_and_as_far_as_by_albumentations(draws):
    (ours, our_moves, _), (theirs, their_moves, _) = draws
    _assert_as_often(ours, theirs)
    _assert_as_often(our_moves.mirrored, their_moves.mirrored)
    _assert_same_distribution(our_moves.rotation_deg[ours], their_moves.rotation_deg[theirs])
    for axis in range(2):
        _assert_same_distribution(our_moves.scale[ours, axis], their_moves.scale[theirs, axis])
        _assert_as_often(our_moves.shift_px[ours, axis], np.rint(their_moves.shift_px[theirs, axis]))
    for moves, moved in ((our_moves, ours), (their_moves, theirs)):  # the two axes are scaled by themselves
        assert abs(np.corrcoef(moves.scale[moved], rowvar=False)[0, 1]) < 0.1


def test_grey_levels_and_colours_change_as_often_and_as_much_as_by_albumentations(draws):
    ours, theirs = (changes for _, _, changes in draws)
    if isinstance(ours, Exposures):
        _assert_as_often(ours.factor != 1, theirs.factor != 1)
        _assert_same_distribution(ours.factor[ours.factor != 1], theirs.factor[theirs.factor != 1])
        _assert_same_distribution(ours.offset[ours.factor != 1], theirs.offset[theirs.factor != 1])
        return
    _assert_as_often(ours.changed, theirs.changed)
    for step in range(3):
        _assert_same_distribution(ours.factors[ours.changed, step], theirs.factors[theirs.changed, step])
    _assert_same_distribution(ours.hue[ours.changed], theirs.hue[theirs.changed])
    _assert_as_often(ours.order[ours.changed], theirs.order[theirs.changed])
    assert len(np.unique(ours.order, axis=0)) == 24


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_numbers_reach_the_limits_of_the_ranges_and_no_further(modality):
    movement, intensity = RANGES[modality](1.0)
    moved, moves, changes = _drawn(modality, 20_000)
    samples = [(movement.rotation_deg, moves.rotation_deg[moved]), (movement.scale, moves.scale[moved, 0])]
    samples += [(movement.scale, moves.scale[moved, 1])]
    if isinstance(intensity, Exposure):
        assert isinstance(changes, Exposures)
        samples += [((1 - intensity.contrast, 1 + intensity.contrast), changes.factor)]
        samples += [((-255 * intensity.brightness, 255 * intensity.brightness), changes.offset)]
    else:
        assert isinstance(changes, Tints)
        limits = (intensity.brightness, intensity.contrast, intensity.saturation)
        samples += [((1 - limit, 1 + limit), changes.factors[:, step]) for step, limit in enumerate(limits)]
        samples += [((-intensity.hue, intensity.hue), changes.hue)]
    for (low, high), sample in samples:
        unit = (sample - low) / (high - low)
        assert 0 <= unit.min() < 0.001
        assert 0.999 < unit.max() <= 1


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_the_mean_and_the_spread_of_many_versions_are_those_of_albumentations(modality):
    one, batched = build_augmentation(modality, 1.0), build_batch_augmentation(modality, 1.0)
    assert one is not None
    assert batched is not None
    picture = _picture(CHANNELS[modality])
    theirs = np.stack([one(picture, seed) for seed in range(DRAWS)]).astype(np.float32)
    ours = _pictures(batched(_batch(picture[np.newaxis].repeat(DRAWS, axis=0)), _seeds(DRAWS))).astype(np.float32)
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    error = np.sqrt((theirs.var(axis=0) + ours.var(axis=0)) / DRAWS)
    assert np.sqrt(np.mean((difference / error) ** 2)) < 2  # 1 on average where the distribution is the same
    assert np.abs(difference / error).max() < 5
    assert np.median(ours.std(axis=0) / theirs.std(axis=0)) == pytest.approx(1, abs=0.04)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("modality", sorted(RANGES))
def test_on_a_gpu_the_result_is_that_of_the_cpu_with_deterministic_operations_only(modality):
    augment = build_batch_augmentation(modality, 1.0)
    assert augment is not None
    images, seeds = _batch(_noise(33, CHANNELS[modality], 299)), _seeds(33)
    torch.use_deterministic_algorithms(True)
    try:
        found = augment(images.cuda(), seeds)
        assert torch.equal(augment(images[4:9].cuda(), seeds[4:9]), found[4:9])
    finally:
        torch.use_deterministic_algorithms(False)
    error = (found.cpu().int() - augment(images, seeds).int()).abs()
    assert error.float().mean() < 0.05
    assert (error <= 2).float().mean() > 0.999
