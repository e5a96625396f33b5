"""Sources of weights: what is accepted, what is refused, and whose preprocessing holds."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.models.inception import inception_v3

from medxfer.errors import CheckpointError, ConfigError
from medxfer.models import weights
from medxfer.models.inception import InceptionBackbone
from medxfer.models.weights import fetch_imagenet, imagenet_file, load_source, read_checkpoint


@pytest.fixture(scope="module")
def torchvision_state() -> dict[str, torch.Tensor]:
    """A state dict as torchvision publishes it: with auxiliary classifier and 1000 classes."""
    torch.manual_seed(0)
    return inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False).state_dict()


def _assert_backbone(found: dict[str, torch.Tensor] | None, state: dict[str, torch.Tensor]) -> None:
    assert found is not None
    assert set(found) == set(InceptionBackbone().state_dict())
    assert all(torch.equal(found[key], state[key].to(found[key].dtype)) for key in found)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_pth_of_torchvision_or_timm(tmp_path, torchvision_state, wrap):
    torch.save(wrap(torchvision_state), tmp_path / "w.pth")
    source = load_source(str(tmp_path / "w.pth"))
    _assert_backbone(source.state_dict, torchvision_state)
    assert source.input_mean == source.input_std == (0.5, 0.5, 0.5)
    assert "assumed" in source.declared_by
    assert source.name == "w.pth"
    assert len(source.digest) == 64


def test_safetensors_in_half_precision_with_its_sidecar(tmp_path, torchvision_state):
    half = {k: v.half() if v.is_floating_point() else v for k, v in torchvision_state.items()}
    safetensors.torch.save_file(half, tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text(json.dumps({"input_mean": [0.485, 0.456, 0.406], "input_std": 3 * [0.2]}))
    source = load_source(str(tmp_path / "w.safetensors"))
    _assert_backbone(source.state_dict, half)
    assert source.input_mean == (0.485, 0.456, 0.406)
    assert source.declared_by == "w.json"
    overridden = load_source(str(tmp_path / "w.safetensors"), input_mean=[0.1])
    assert overridden.input_mean == (0.1, 0.1, 0.1)
    assert overridden.input_std == (0.2, 0.2, 0.2)


def test_counters_that_old_files_lack_are_not_needed(tmp_path, torchvision_state):
    torch.save({k: v for k, v in torchvision_state.items() if "num_batches" not in k}, tmp_path / "w.pth")
    _assert_backbone(load_source(str(tmp_path / "w.pth")).state_dict, torchvision_state)


def test_missing_and_misshapen_tensors_are_listed(tmp_path, torchvision_state):
    broken = dict(torchvision_state)
    del broken["Mixed_6e.branch1x1.conv.weight"]
    broken["Mixed_5b.branch1x1.conv.weight"] = torch.zeros(1, 2, 3, 4)
    broken["Mixed_5c.branch1x1.conv.weight"] = torch.full_like(broken["Mixed_5c.branch1x1.conv.weight"], torch.nan)
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_source(str(tmp_path / "w.pth"))
    text = str(caught.value)
    assert "Mixed_6e.branch1x1.conv.weight is missing" in text
    assert "Mixed_5b.branch1x1.conv.weight must be (64, 192, 1, 1), found (1, 2, 3, 4)" in text
    assert "Mixed_5c.branch1x1.conv.weight holds numbers that are not finite" in text


def test_a_sidecar_that_says_nothing_is_refused(tmp_path, torchvision_state):
    torch.save(torchvision_state, tmp_path / "w.pth")
    (tmp_path / "w.json").write_text('{"input_mean": [0.5]}')
    with pytest.raises(CheckpointError, match=r"w\.json must hold input_mean and input_std"):
        load_source(str(tmp_path / "w.pth"))


def test_no_such_source(tmp_path):
    with pytest.raises(ConfigError, match=r"imagenet, none, or the path"):
        load_source(str(tmp_path / "nothing.pth"))
    with pytest.raises(CheckpointError, match="is not a finished run"):
        load_source(str(tmp_path))
    (tmp_path / "w.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"ending in \.pth"):
        load_source(str(tmp_path / "w.txt"))


class _Gadget:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_no_code_in_a_file_is_run(tmp_path, write):
    write({"state_dict": _Gadget(tmp_path / "was_here")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth is refused|cannot be read"):
        read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x80\x02garbage"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_source(str(tmp_path / name))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_imagenet_weights_are_verified_by_the_hash_in_their_name(cache, tmp_path, torchvision_state, monkeypatch):
    cache.mkdir(parents=True)
    torch.save(torchvision_state, tmp_path / "file.pth")
    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    published = f"https://example.invalid/inception_v3_google-{digest[:8]}.pth"
    monkeypatch.setattr(weights, "IMAGENET_URL", published)
    shutil.copy(tmp_path / "file.pth", imagenet_file())
    source = load_source("imagenet")
    _assert_backbone(source.state_dict, torchvision_state)
    assert source.input_mean == source.input_std == (0.5, 0.5, 0.5)
    imagenet_file().write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=rf"is damaged: its SHA-256 must begin with {digest[:8]}"):
        fetch_imagenet()


def test_without_network_and_cache_the_message_names_every_way_out(cache, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(CheckpointError) as caught:
        load_source("imagenet")
    for part in (imagenet_file().name, str(cache), "medxfer.weights fetch", "--model.weights PATH"):
        assert part in str(caught.value)


def test_random_weights_have_no_state():
    source = load_source("none")
    assert source.state_dict is None
    assert source.digest == ""
