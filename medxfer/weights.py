"""Weights: `python -m medxfer.weights fetch` downloads ImageNet's, `… show --weights PATH` says what a source is."""

import sys
from collections.abc import Sequence
from typing import Any

from medxfer.config import WeightsConfig
from medxfer.models.weights import fetch_imagenet, imagenet_file, load_source
from medxfer.parsing import parse_config
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.weights",
    "description": "Fetch the ImageNet weights, or say what a source of weights is: --weights PATH.",
    "positional": "action",
    "metavar": "fetch|show",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return run_verb(lambda arguments: parse_config(WeightsConfig, arguments, **READ), weights, argv)


def weights(config: WeightsConfig) -> int:
    """Fetch or show; `show` never downloads.

    Raises:
        MedxferError: the source cannot be used.
    """
    if config.action == "fetch":
        print(f"the ImageNet weights are verified and ready: {fetch_imagenet()}")
        return 0
    if config.weights == "imagenet" and not imagenet_file().is_file():
        print(f"the ImageNet weights are not on this machine; `{READ['prog']} fetch` writes {imagenet_file()}")
        return 1
    source = load_source(config.weights)
    print(f"source:             {source.name}")
    if source.state_dict is not None:
        numbers = sum(tensor.numel() for tensor in source.state_dict.values())
        print(f"backbone:           Inception V3, {len(source.state_dict)} tensors, {numbers:,} numbers")
        print(f"SHA-256:            {source.digest}")
    print(f"input mean:         {source.input_mean} of pixels on 0..1")
    print(f"standard deviation: {source.input_std}")
    print(f"declared by:        {source.declared_by}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
