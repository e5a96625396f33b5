"""Sources of backbone weights: torchvision's ImageNet file, a file of the same layout, or an earlier run.

Preprocessing belongs to the weights: every source declares the mean and standard deviation it expects. Files are read
with safetensors or `torch.load(weights_only=True)`; no code in a file is ever run.
"""

import hashlib
import json
import math
import pickle
import urllib.error
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.inception import Inception_V3_Weights

from medxfer.errors import CheckpointError, ConfigError, listed
from medxfer.models.inception import InceptionBackbone

Triple = tuple[float, float, float]

NETWORK_KEY = "medxfer"
"""Where a checkpoint of medxfer keeps what its network is."""

IMAGENET_URL = Inception_V3_Weights.IMAGENET1K_V1.url
"""Its file name ends with the beginning of its SHA-256."""

IMAGENET_MEAN_STD: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""torchvision's `transform_input` undoes ImageNet normalisation, so the exact preprocessing is x/127.5 − 1."""

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class SourceWeights:
    """Backbone weights and the preprocessing that belongs to them.

    Attributes:
        state_dict: float32 tensors under torchvision's names; None: random weights.
        input_mean: mean per channel, of pixels on 0..1.
        input_std: standard deviation per channel, of pixels on 0..1.
        declared_by: where mean and standard deviation come from.
        name: what the source is called in messages and records; no path.
        digest: SHA-256 of the tensors, in hexadecimal; empty for random weights.
    """

    state_dict: dict[str, Tensor] | None
    input_mean: Triple
    input_std: Triple
    declared_by: str
    name: str
    digest: str


def load_source(
    weights: str, *, input_mean: Sequence[float] | None = None, input_std: Sequence[float] | None = None
) -> SourceWeights:
    """Find, verify and read a source of weights.

    Args:
        weights: imagenet, none, or the path of a file or of a run folder.
        input_mean: 1 or 3 numbers on 0..1 that win over what the source declares.
        input_std: likewise.

    Raises:
        ConfigError: there is no such source.
        CheckpointError: the file is damaged, not Inception V3, or could not be downloaded.
    """
    if weights == "none":
        state, declared, by, name = None, IMAGENET_MEAN_STD, "convention (0.5 and 0.5 on 0..1)", "random"
    elif weights == "imagenet":
        state, declared, by, name = _read(fetch_imagenet()), IMAGENET_MEAN_STD, "torchvision", "imagenet"
    else:
        path = _existing(weights)
        if path.is_dir():
            path = path / "checkpoints" / "best.ckpt"
            if not path.is_file():
                raise CheckpointError(
                    f"{weights} is not a finished run: {path} does not exist; name a run folder that has it, or a file"
                )
        name = Path(weights).name
        state = _read(path)
        declared, by = _declared(path, state)
    mean, std = declared or IMAGENET_MEAN_STD
    if declared is None:
        by = "nothing (0.5 and 0.5 on 0..1 are assumed; set model.input_mean and model.input_std if that is wrong)"
    if input_mean is not None or input_std is not None:
        by = "model.input_mean and model.input_std" if input_mean and input_std else f"the config, else {by}"
    backbone = _backbone_state(state, name) if state is not None else None
    return SourceWeights(
        state_dict=backbone,
        input_mean=_triple(input_mean) if input_mean is not None else mean,
        input_std=_triple(input_std) if input_std is not None else std,
        declared_by=by,
        name=name,
        digest=_digest(backbone) if backbone is not None else "",
    )


def imagenet_file() -> Path:
    """Return where torchvision's ImageNet weights lie, or would lie, on this machine."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name


def fetch_imagenet(*, progress: bool = True) -> Path:
    """Return the verified file of ImageNet weights, downloading it (104 MB) when it is not there.

    Raises:
        CheckpointError: it could not be downloaded, or its SHA-256 does not begin as its name says.
    """
    path = imagenet_file()
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file():
        print(f"downloading the ImageNet weights {path.name} (104 MB) to {path.parent}", flush=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(IMAGENET_URL, str(path), hash_prefix=prefix, progress=progress)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the ImageNet weights {path.name} are not in {path.parent} and could not be downloaded: {error}\n"
                "on a machine with internet run `python -m medxfer.weights fetch` and copy the file to that folder, "
                "or name a file of weights with --model.weights PATH"
            ) from error
    found = _file_sha256(path)
    if not found.startswith(prefix):
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 must begin with {prefix}, found {found[:8]}; delete it and run "
            "`python -m medxfer.weights fetch` again"
        )
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running any code in it.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything but tensors and plain types.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # remarks on the file's pickle protocol; it loads or it does not
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # a damaged file brings out exceptions of struct, zipfile and many more
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch advises to load unsafely
            raise CheckpointError(
                f"{path} is refused: it is no checkpoint of plain tensors, and loading it could run code"
            ) from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, found {type(content).__name__}")
    return dict(content)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _existing(weights: str) -> Path:
    path = Path(weights)
    if not path.exists():
        raise ConfigError(
            f"model.weights must be imagenet, none, or the path of a file or a run folder; there is no {weights}"
        )
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ConfigError(f"model.weights must be a file ending in {', '.join(SUFFIXES)}, found {weights}")
    return path


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _declared(path: Path, state: Mapping[str, Any]) -> tuple[tuple[Triple, Triple] | None, str]:
    """Find the preprocessing in the checkpoint itself, or in `NAME.json` beside the file."""
    if NETWORK_KEY in state:
        try:
            spec = state[NETWORK_KEY]["spec"]
            return (_triple(spec["input_mean"]), _triple(spec["input_std"])), "the run"
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of medxfer, or of another version: {error}") from error
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return None, ""
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
        mean, std = _triple(values["input_mean"]), _triple(values["input_std"])
        if min(std) <= 0:
            raise ValueError(f"a standard deviation is positive, found {min(std)}")
        return (mean, std), sidecar.name
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{sidecar} must hold input_mean and input_std as lists of 1 or 3 numbers on 0..1: {error!r}"
        ) from error


def _triple(values: Sequence[float]) -> Triple:
    numbers = [float(value) for value in values]
    if len(numbers) not in (1, 3):
        raise ValueError(f"1 or 3 numbers are needed, found {len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"finite numbers are needed, found {numbers}")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _backbone_state(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Take the backbone's tensors out of a state dict in any of the usual wrappings, and verify them."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {
        key: value.detach() for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    for prefix in ("net.backbone.", "module.", "model.", "backbone."):
        if any(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    faults = []
    wanted = InceptionBackbone().state_dict()
    found: dict[str, Tensor] = {}
    for key, like in wanted.items():
        value = tensors.get(key)
        if value is None and key.endswith("num_batches_tracked"):
            value = torch.zeros_like(like)  # older files lack the counter, which no computation here uses
        if value is None:
            faults.append(f"{key} is missing")
        elif value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            faults.append(f"{key} must hold plain numbers, found a tensor that is sparse, quantized, complex or empty")
        elif value.shape != like.shape:
            faults.append(f"{key} must be {tuple(like.shape)}, found {tuple(value.shape)}")
        elif not torch.isfinite(value.float()).all():
            faults.append(f"{key} holds numbers that are not finite")
        else:
            found[key] = value.to(like.dtype).clone()
    if faults:
        raise CheckpointError(
            listed(
                f"{name} is not an Inception V3 in torchvision's layout, {len(faults)} of {len(wanted)} tensors:",
                faults,
            )
        )
    return found


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
