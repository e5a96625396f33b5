import torch

from medxfer.models.loading import load_network
from tests.conftest import SIZE_PX


def test_a_checkpoint_gives_the_network_and_what_feeds_it(finished):
    net, description = load_network(finished / "checkpoints" / "best.ckpt")
    assert not net.training
    assert description.class_names == ("clear", "opacity")
    assert (description.task, description.channels, description.image_size_px) == ("binary", 1, SIZE_PX)
    assert description.fit == "pad"
    stored = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, stored[f"net.{name}"])


def test_best_and_last_hold_plain_types_only(finished):
    for name in ("best", "last"):
        torch.load(finished / "checkpoints" / f"{name}.ckpt", weights_only=True)
