"""A checkpoint of medxfer → its network, preprocessing and class names; for evaluate, predict and weights."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medxfer.errors import CheckpointError
from medxfer.models.transfer import NetworkSpec, TransferNet
from medxfer.models.weights import NETWORK_KEY, read_checkpoint


@dataclass(frozen=True)
class Description:
    """What a checkpoint says about its network: enough to feed it and to name its outputs.

    Attributes:
        spec: how to build the network.
        task: binary, multiclass or multilabel.
        class_names: one name per output; in binary the last is the positive class.
        channels: 1 or 3, as pictures are stored.
        image_size_px: side of the pictures.
        fit: pad, crop or stretch.
        frame: first or middle of a file with several pictures; None: such files are refused.
    """

    spec: NetworkSpec
    task: str
    class_names: tuple[str, ...]
    channels: int
    image_size_px: int
    fit: str
    frame: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that a checkpoint can hold safely."""
        return {**asdict(self), "spec": self.spec.to_dict(), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Description":
        """Build from what `to_dict` returned."""
        plain = {**values, "spec": NetworkSpec.from_dict(values["spec"]), "class_names": tuple(values["class_names"])}
        return cls(**plain)


def load_network(path: Path) -> tuple[TransferNet, Description]:
    """Rebuild the network of a checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or medxfer did not write it.
    """
    content = read_checkpoint(path)
    try:
        description = Description.from_dict(content[NETWORK_KEY])
        network = TransferNet(description.spec)
        prefix = "net."
        state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of medxfer, or of another version: {error}") from error
    return network.eval(), description
