"""The augmentations of `augment.py` for whole batches on any device: the same ranges, order, borders and roundings.

Each image is drawn from its own seed, so that neither its batch nor its place there matters. The numbers drawn are not
albumentations', but their distribution is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medxfer.data.augment import RANGES, Colour, Exposure, Movement

BatchAugmentation = Callable[[Tensor, np.ndarray], Tensor]
"""Pictures uint8 (B, C, S, S) in 0..255 on any device, and seeds (B,) below 2³² → pictures of the same kind."""

MOVEMENT_NUMBERS = 8
COLOUR_NUMBERS = 9

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The steps of a change of colour, by which `Tints.order` names them."""

GREY = (9798 / 2**15, 19235 / 2**15, 3735 / 2**15)
"""Shares of red, green and blue in a grey level: ITU-R BT.601, rounded as OpenCV has them."""


def build_batch_augmentation(modality: str, strength: float) -> BatchAugmentation | None:
    """Build the augmentation of a modality for batches; see `augment.build_augmentation` for what it does.

    Args:
        modality: xray or dermoscopy.
        strength: factor on every range; 0: none.

    Returns:
        A function of pictures and seeds, in which each result depends on its own picture and seed only; or None.
    """
    if strength == 0:
        return None
    movement, intensity = RANGES[modality](strength)

    def augment(images: Tensor, seeds: np.ndarray) -> Tensor:
        numbers = uniforms(seeds, MOVEMENT_NUMBERS + COLOUR_NUMBERS)
        moves = draw_moves(movement, numbers[:, :MOVEMENT_NUMBERS], size_px=images.shape[-1])
        images = move(images, moves, reflect=movement.reflect)
        rest = numbers[:, MOVEMENT_NUMBERS:]
        if isinstance(intensity, Exposure):
            return expose(images, draw_exposures(intensity, rest))
        return tint(images, draw_tints(intensity, rest))

    return augment


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """Return `count` independent numbers of each seed, float64 (B, count), uniform on [0, 1).

    They are the first outputs of splitmix64 (Steele, Lea and Flood 2014, doi.org/10.1145/2714064.2660195), which is a
    hash of seed and position.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = seeds.astype(np.uint64)[:, np.newaxis] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Moves:
    """What is drawn of a `Movement`, one row per image; an image that is not moved has 0, 1 and 0.

    Attributes:
        mirrored: left-right and up-down, bool (B, 2).
        rotation_deg: (B,).
        scale: of x and y, (B, 2).
        shift_px: of x and y, whole numbers, (B, 2).
    """

    mirrored: np.ndarray
    rotation_deg: np.ndarray
    scale: np.ndarray
    shift_px: np.ndarray


@dataclass(frozen=True)
class Exposures:
    """What is drawn of an `Exposure`, (B,) each: grey levels x become x · factor + offset."""

    factor: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Tints:
    """What is drawn of a `Colour`, one row per image.

    Attributes:
        changed: whether anything is, bool (B,).
        factors: of brightness, contrast and saturation, (B, 3).
        hue: turns of the colour wheel, (B,).
        order: the four steps as they follow each other, int (B, 4).
    """

    changed: np.ndarray
    factors: np.ndarray
    hue: np.ndarray
    order: np.ndarray


def draw_moves(ranges: Movement, numbers: np.ndarray, *, size_px: int) -> Moves:
    """Draw movements from numbers (B, 8) uniform on [0, 1)."""
    moved = numbers[:, 2] < ranges.p
    return Moves(
        mirrored=numbers[:, :2] < ranges.mirror_p,
        rotation_deg=np.where(moved, _between(ranges.rotation_deg, numbers[:, 3]), 0),
        scale=np.where(moved[:, np.newaxis], _between(ranges.scale, numbers[:, 4:6]), 1),
        shift_px=np.where(moved[:, np.newaxis], np.trunc(_between(ranges.shift, numbers[:, 6:8]) * size_px), 0),
    )


def draw_exposures(ranges: Exposure, numbers: np.ndarray) -> Exposures:
    """Draw changes of grey levels from numbers (B, ≥ 3) uniform on [0, 1)."""
    changed = numbers[:, 0] < ranges.p
    contrast, brightness = (
        np.where(changed, _between((-limit, limit), numbers[:, k]), 0)
        for k, limit in ((1, ranges.contrast), (2, ranges.brightness))
    )
    return Exposures(factor=1 + contrast, offset=255 * brightness)


def draw_tints(ranges: Colour, numbers: np.ndarray) -> Tints:
    """Draw changes of colour from numbers (B, 9) uniform on [0, 1)."""
    limits = np.array([ranges.brightness, ranges.contrast, ranges.saturation])
    return Tints(
        changed=numbers[:, 0] < ranges.p,
        factors=1 + limits * (2 * numbers[:, 1:4] - 1),
        hue=_between((-ranges.hue, ranges.hue), numbers[:, 4]),
        order=numbers[:, 5:9].argsort(axis=1),
    )


def move(images: Tensor, moves: Moves, *, reflect: bool) -> Tensor:
    """Mirror, scale, rotate (anticlockwise) and shift pictures about their middle, bilinear, in one resampling.

    Args:
        images: uint8 (B, C, S, S).
        moves: one row per image.
        reflect: whether pictures go on mirrored beyond their border, whose pixels are not repeated; otherwise black.
    """
    size_px = images.shape[-1]
    # With the corners aligned, grid_sample reflects at the middle of the border's pixels, which repeats none of them.
    # Without, it goes to black within a pixel as OpenCV does, and never takes cuDNN's sampler with its own roundings.
    half = (size_px - 1) / 2 if reflect else size_px / 2
    xx, xy, x0, yx, yy, y0 = _to_device(_sources(moves, half), images.device).view(-1, 6, 1, 1).unbind(1)
    steps = (torch.arange(size_px, device=images.device) - (size_px - 1) / 2) / half
    u, v = steps.view(1, 1, -1), steps.view(1, -1, 1)
    # not affine_grid: its matrix product may run in TF32, and depends on the size of the batch
    grid = torch.stack((xx * u + (xy * v + x0), yx * u + (yy * v + y0)), dim=-1)
    mode = "reflection" if reflect else "zeros"
    return F.grid_sample(images.float(), grid, padding_mode=mode, align_corners=reflect).round_().to(torch.uint8)


def expose(images: Tensor, exposures: Exposures) -> Tensor:
    """Return x · factor + offset of grey levels x, cut to 0..255 and then down to whole levels; uint8 (B, C, S, S)."""
    table = _to_device(np.stack((exposures.factor, exposures.offset), axis=1), images.device)
    factor, offset = table.view(-1, 2, 1, 1, 1).unbind(1)
    return (images * factor).add_(offset).clamp_(0, 255).to(torch.uint8)


def tint(images: Tensor, tints: Tints) -> Tensor:
    """Change brightness, contrast, saturation and hue, each image in its own order.

    After each step grey levels are whole numbers again, cut or rounded as OpenCV's are.

    Args:
        images: uint8 (B, C, S, S), C 1 or 3; one channel has neither saturation nor hue.
        tints: one row per image.
    """
    # Images that take hue, the costly step, at the same place lie side by side, and those that stay as they are behind.
    place = np.where(tints.changed, tints.order.argsort(axis=1)[:, HUE], 4)
    sorting = place.argsort(kind="stable")
    ends = np.searchsorted(place[sorting], np.arange(5))
    # One table of small numbers for all steps: each wait for the bus costs more than they do.
    table = np.concatenate(
        [_mixtures(tints)[sorting].reshape(-1, 16), np.floor(180 * tints.hue[sorting, None])], axis=1
    )
    table = _to_device(np.concatenate([table, sorting[:, None], sorting.argsort()[:, None]], axis=1), images.device)
    *mixtures, turn, there, back = *table[:, :16].view(-1, 4, 4).unbind(1), *table[:, 16:].unbind(1)
    images = images.index_select(0, there.long())
    changed = images[: ends[4]]
    for step, mixture in enumerate(mixtures):
        changed.copy_(_mix(changed, mixture[: ends[4]]))
        turned = changed[ends[step] : ends[step + 1]]
        if len(turned) and images.shape[1] == 3:
            turned.copy_(_turn_hue(turned, turn[ends[step] : ends[step + 1]]))
    return images.index_select(0, back.long())


def _between(limits: tuple[float, float], numbers: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * numbers


def _to_device(table: np.ndarray, device: torch.device) -> Tensor:
    """Return numbers as float32 on a device, without waiting for it."""
    tensor = torch.from_numpy(table.astype(np.float32))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _sources(moves: Moves, half: float) -> np.ndarray:
    """Return which point each point comes from, measured from the middle in units of `half` pixels.

    Row (xx, xy, x0, yx, yy, y0) of an image: (u, v) comes from (xx u + xy v + x0, yx u + yy v + y0), (B, 6).
    """
    angle = np.deg2rad(moves.rotation_deg)
    signed = np.where(moves.mirrored, -1, 1) / moves.scale
    xx, xy = np.cos(angle) * signed[:, 0], -np.sin(angle) * signed[:, 0]
    yx, yy = np.sin(angle) * signed[:, 1], np.cos(angle) * signed[:, 1]
    x, y = moves.shift_px.T / half
    return np.stack((xx, xy, -xx * x - xy * y, yx, yy, -yx * x - yy * y), axis=1)


def _mixtures(tints: Tints) -> np.ndarray:
    """Return what the four steps take of a pixel, its grey level, the picture's mean and 1, (B, 4, 4); hue: the pixel.

    Brightness and contrast are cut down to whole levels, saturation is rounded, hence its half.
    """
    brightness, contrast, saturation = tints.factors.T
    one, none = np.ones_like(brightness), np.zeros_like(brightness)
    by_operation = np.empty((len(one), 4, 4))
    by_operation[:, BRIGHTNESS] = np.stack((brightness, none, none, none), axis=1)
    by_operation[:, CONTRAST] = np.stack((contrast, none, 1 - contrast, none), axis=1)
    by_operation[:, SATURATION] = np.stack((saturation, 1 - saturation, none, one / 2), axis=1)
    by_operation[:, HUE] = np.stack((one, none, none, none), axis=1)
    return np.take_along_axis(by_operation, tints.order[:, :, np.newaxis], axis=1)


def _mix(images: Tensor, mixture: Tensor) -> Tensor:
    """Return float32 pictures on 0..255 out of uint8 ones, by rows of `_mixtures`."""
    own, grey_share, mean_share, rest = mixture.view(-1, 4, 1, 1, 1).unbind(1)
    grey = _grey(images)
    # Sums of whole numbers are exact in float64, whatever the order in which a device adds them.
    mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).div_(grey.shape[-2] * grey.shape[-1]).float()
    # No fused multiply-add: it rounds once less, and whether it is used depends on the place in memory.
    return (images * own).add_((grey * grey_share).add_(mean * mean_share + rest)).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """Return grey levels, whole numbers in float32 (B, 1, S, S)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    # exact: 8 bits times 15 fit float32
    return (red * GREY[0]).add_(green * GREY[1]).add_(blue * GREY[2]).add_(0.5).floor_()


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Return float32 pictures on 0..255 whose hue, 180 to a turn, went on by whole numbers (B,).

    OpenCV's HSV of 8 bits there and back: its tables of divisors, 12 bits behind the point, and its cut at the end.
    """
    levels = images.int()
    value = levels.amax(dim=1)
    range_ = value - levels.amin(dim=1)
    red, green, blue = levels.unbind(1)
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * range_, red - green + 4 * range_),
    )
    hue = (hue * ((180 << 12) / 6 / range_.clamp(min=1)).round_().int() + (1 << 11)) >> 12
    saturation = (range_ * ((255 << 12) / value.clamp(min=1)).round_().int() + (1 << 11)) >> 12
    hue = (hue + turn.view(-1, 1, 1)).remainder_(180)
    # of channel n, with k = (n + hue in sixths) mod 6: value (1 - saturation min(k, 4 - k, 1)), n = 5, 3, 1
    n = 5 - 2 * torch.arange(3, device=images.device).view(3, 1, 1)
    k = (hue.unsqueeze(1) / 30 + n).remainder_(6)
    dip = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (value / 255).unsqueeze(1) * (1 - (saturation / 255).unsqueeze(1) * dip) * 255
