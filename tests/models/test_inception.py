"""The list of blocks, against torchvision's own network."""

from typing import get_args

import pytest
import torch
from torchvision.models.inception import inception_v3

from medxfer.config import FreezeUntil
from medxfer.models.inception import (
    BLOCK_NAMES,
    InceptionBackbone,
    initialize_from_scratch,
    run_blocks,
    split_blocks,
)


@pytest.fixture(scope="module")
def pair() -> tuple[InceptionBackbone, torch.nn.Module]:
    torch.manual_seed(0)
    whole = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False).eval()
    whole.fc = torch.nn.Identity()
    backbone = InceptionBackbone().eval()
    backbone.load_state_dict(whole.state_dict())
    return backbone, whole


def test_gives_what_torchvision_gives(pair):
    backbone, whole = pair
    images = torch.randn(2, 3, 107, 107, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), whole(images))


@pytest.mark.parametrize("cut", BLOCK_NAMES)
def test_prefix_and_suffix_make_the_whole_at_every_cut(pair, cut):
    backbone, _ = pair
    prefix, suffix = split_blocks(cut)
    assert prefix[-1] == cut
    assert prefix + suffix == BLOCK_NAMES
    images = torch.randn(1, 3, 75, 75, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        parts = backbone.pool(run_blocks(backbone, run_blocks(backbone, images, prefix), suffix))
        assert torch.equal(parts, backbone(images))


def test_none_and_all():
    assert split_blocks("none") == ((), BLOCK_NAMES)
    assert split_blocks("all") == (BLOCK_NAMES, ())


def test_the_config_knows_exactly_these_cuts():
    assert set(get_args(FreezeUntil)) == {"none", "all", *BLOCK_NAMES}


def test_every_parameter_belongs_to_a_block():
    backbone = InceptionBackbone()
    in_blocks = {id(p) for block in backbone.blocks(BLOCK_NAMES) for p in block.parameters()}
    assert in_blocks == {id(p) for p in backbone.parameters()}


def test_initialization_from_scratch_keeps_activations_alive():
    backbone = InceptionBackbone()
    initialize_from_scratch(backbone, generator=torch.Generator().manual_seed(0))
    weight = backbone.Mixed_6c.branch1x1.conv.weight
    assert float(weight.detach().std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    backbone.train()
    with torch.no_grad():
        features = backbone(torch.randn(4, 3, 75, 75, generator=torch.Generator().manual_seed(0)))
    assert 0.1 < float(features.std()) < 10
