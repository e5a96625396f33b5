"""Training on what was kept of the frozen part equals training on pictures, and nothing else finds it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medxfer.data.augment import build_augmentation
from medxfer.data.dataset import PictureDataset
from medxfer.data.feeding import FromRows, FromStore
from medxfer.errors import DataError
from medxfer.models.transfer import TransferNet
from medxfer.training.callbacks.interruption import TrainingInterruptedError
from medxfer.training.features import FeatureCache
from medxfer.training.stages import StagePlan
from tests.conftest import SIZE_PX
from tests.models.test_folding import make_net
from tests.training.fixtures import fit, make_feed

IDENTITY = {"pixels": "a", "image_size_px": SIZE_PX, "channels": 1, "augment": 1.0, "seed": 0}


def make_cache(net: TransferNet, folder: Path, *, plan: StagePlan | None = None, **changes: object) -> FeatureCache:
    settings = {
        "net": net, "plan": plan or StagePlan(2, 2), "at": "cut", "folder": folder,
        "digests": [f"file-{row}" for row in range(18)], "identity": IDENTITY, "amp": None, "batch_size": 5, **changes,
    }  # fmt: skip
    return FeatureCache(**settings)


def make_examples(*, views: int = 2, augmented: bool = True, seed: int = 0) -> PictureDataset:
    feed = make_feed()
    feed.augment = build_augmentation("xray", 1.0) if augmented else None
    feed.views, feed.seed = views, seed
    return feed.training_examples()


class Counting(FromStore):
    """Counts the pictures that were asked for."""

    def __init__(self, examples: PictureDataset) -> None:
        super().__init__(examples, workers=0, pin_memory=False)
        self.count = 0

    def __call__(self, batches):
        for batch in super().__call__(batches):
            self.count += len(batch["row"])
            yield batch


def computed(cache: FeatureCache, examples: PictureDataset, epoch: int = 0) -> int:
    """Return how many pictures the network had to see before the epoch could begin."""
    pictures = Counting(examples)
    cache(epoch, examples, pictures)
    return pictures.count


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("suffix_batch_norm", ["frozen", "train"])
def test_training_on_what_was_kept_gives_the_same_weights(source, tmp_path, fold, suffix_batch_norm):
    trained = []
    for at in ("none", "head", "cut"):
        net = make_net(source, fold=fold, suffix_batch_norm=suffix_batch_norm)
        plan = StagePlan(head_epochs=3, finetune_epochs=2)
        feed = make_feed()
        feed.augment, feed.views = build_augmentation("xray", 1.0), 2
        feed.keeper = make_cache(net, tmp_path / "features", plan=plan, at=at)
        (tmp_path / at).mkdir()
        fit(net, tmp_path / at, plan=plan, feed=feed)
        trained.append(net.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(value, other[name]) for name, value in trained[0].items())


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_rows_are_what_the_network_gives_in_its_own_type(source, tmp_path, amp):
    net = make_net(source)
    examples = make_examples()
    pictures = FromStore(examples, workers=0, pin_memory=False)
    cache = make_cache(net, tmp_path, amp=amp)
    indices = [[(1, position) for position in (3, 0, 7)]]
    head = next(cache(1, examples, pictures)(indices))["pooled"]
    cut = next(cache(3, examples, pictures)(indices))["cut"]  # the fine-tuning stage
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp is not None):
        exact = net.to_cut(next(pictures(indices))["image"])
        assert torch.equal(cut, exact)
        assert cut.dtype == (amp or torch.float32)
        assert torch.equal(head, net.to_pooled(exact))


@pytest.mark.parametrize(("at", "stages"), [("none", ["image"] * 2), ("head", ["pooled", "image"]),
                                            ("cut", ["pooled", "cut"])])  # fmt: skip
def test_each_stage_gets_what_lies_nearest_to_what_it_trains(source, tmp_path, at, stages):
    cache = make_cache(make_net(source), tmp_path, at=at)
    examples = make_examples()
    for epoch, level in ((0, stages[0]), (2, stages[1])):
        found = cache(epoch, examples, FromStore(examples, workers=0, pin_memory=False))
        assert (found.name if isinstance(found, FromRows) else "image") == level


def test_each_version_is_computed_once_in_all_stages_and_runs(source, tmp_path):
    cache, examples = make_cache(make_net(source), tmp_path), make_examples(views=2)
    assert [computed(cache, examples, epoch) for epoch in range(4)] == [12, 12, 0, 0]
    again = make_cache(make_net(source), tmp_path)
    assert [computed(again, examples, epoch) for epoch in range(4)] == [0, 0, 0, 0]


def test_pictures_that_are_not_augmented_have_one_version(source, tmp_path):
    cache, examples = make_cache(make_net(source), tmp_path), make_examples(augmented=False, views=0)
    assert [computed(cache, examples, epoch) for epoch in range(4)] == [12, 0, 0, 0]


def test_new_versions_in_every_epoch_are_never_kept(source, tmp_path):
    cache, examples = make_cache(make_net(source), tmp_path), make_examples(views=0)
    pictures = FromStore(examples, workers=0, pin_memory=False)
    assert cache(0, examples, pictures) is pictures
    assert not list(tmp_path.iterdir())


def change_weight(name: str):
    def change(net: TransferNet) -> None:
        with torch.no_grad():
            net.get_parameter(name)[0] += 1e-6

    return change


@pytest.mark.parametrize(
    "net",
    [{"freeze_until": "Mixed_6d"}, {"input_mean": (0.3, 0.5, 0.61)}, {"input_std": (0.2, 0.3, 0.26)}, {"fold": False}],
    ids=str,
)
def test_another_network_never_finds_the_rows(source, tmp_path, net):
    examples = make_examples()
    computed(make_cache(make_net(source), tmp_path), examples)
    assert computed(make_cache(make_net(source, **net), tmp_path), examples) == 12


@pytest.mark.parametrize("block", ["Conv2d_1a_3x3", "Mixed_6e.branch1x1"])
def test_other_weights_below_the_cut_never_find_the_rows(source, tmp_path, block):
    examples = make_examples()
    computed(make_cache(make_net(source), tmp_path), examples)
    other = make_net(source)
    change_weight(f"backbone.{block}.conv.weight")(other)
    assert computed(make_cache(other, tmp_path), examples) == 12


def test_other_weights_above_the_cut_find_only_the_rows_at_the_cut(source, tmp_path):
    examples = make_examples()
    computed(make_cache(make_net(source), tmp_path), examples)
    other = make_net(source)
    change_weight("backbone.Mixed_7c.branch1x1.conv.weight")(other)
    cache = make_cache(other, tmp_path)
    assert computed(cache, examples) == 0
    found = next(cache(0, examples, FromStore(examples, workers=0, pin_memory=False))([[(0, 1)]]))
    fresh = next(make_cache(other, tmp_path / "x")(0, examples, Counting(examples))([[(0, 1)]]))
    assert torch.equal(found["pooled"], fresh["pooled"])


@pytest.mark.parametrize("name", ["pixels", "augment", "seed"])
def test_other_pixels_or_another_augmentation_never_find_the_rows(source, tmp_path, name):
    net, examples = make_net(source), make_examples()
    computed(make_cache(net, tmp_path), examples)
    assert computed(make_cache(net, tmp_path, identity={**IDENTITY, name: "other"}), examples) == 12


def test_another_type_never_finds_the_rows(source, tmp_path):
    net, examples = make_net(source), make_examples()
    computed(make_cache(net, tmp_path), examples)
    assert computed(make_cache(net, tmp_path, amp=torch.bfloat16), examples) == 12


def test_a_changed_file_is_computed_alone(source, tmp_path):
    net, examples = make_net(source), make_examples()
    computed(make_cache(net, tmp_path), examples)
    digests = [f"file-{row}" if row != 4 else "changed" for row in range(18)]
    assert computed(make_cache(net, tmp_path, digests=digests), examples) == 1


def test_other_versions_of_the_same_file_are_other_rows(source, tmp_path):
    net = make_net(source)
    computed(make_cache(net, tmp_path), make_examples(seed=0))
    assert computed(make_cache(net, tmp_path), make_examples(seed=1)) == 12


def test_a_row_that_changed_on_disk_is_computed_again(source, tmp_path):
    net, examples = make_net(source), make_examples()
    cache = make_cache(net, tmp_path, at="head")
    computed(cache, examples)
    (rows,) = tmp_path.glob("*/rows.bin")
    with rows.open("r+b") as file:
        file.seek(5 * 2048 * 4)
        file.write(b"\xff" * 8)
    assert computed(make_cache(net, tmp_path, at="head"), examples) == 1


def test_an_interrupted_pass_keeps_what_it_has(source, tmp_path):
    net, examples, asked = make_net(source), make_examples(), []
    cache = make_cache(net, tmp_path, interrupted=lambda: asked.append(1) or len(asked) > 1)
    with pytest.raises(TrainingInterruptedError):
        computed(cache, examples)
    assert computed(make_cache(net, tmp_path), examples) == 12 - 5


def test_says_what_will_be_kept_and_where(source, tmp_path, capsys):
    cache = make_cache(make_net(source), tmp_path, plan=StagePlan(3, 4))
    feed = make_feed()
    cache.prepare([make_examples(views=4), feed.examples("val")])
    cut, pooled = capsys.readouterr().out.splitlines()
    values = 768 * 3 * 3  # a picture of 75 px at Mixed_6e
    assert f"activations at the cut are kept: {4 * 12 + 6} rows of {values * 4 / 1000:.0f} kB" in cut
    assert f"pooled features are kept: {3 * 12 + 6} rows of 8 kB, 0 MB in {tmp_path}" in pooled
    assert "of which 0 are there already" in pooled
    computed(cache, make_examples(views=4))
    cache.prepare([make_examples(views=4)], head_over=True)
    (cut,) = capsys.readouterr().out.splitlines()
    assert "of which 12 are there already" in cut


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(source, tmp_path, monkeypatch):
    monkeypatch.setattr("medxfer.data.store.shutil.disk_usage", lambda _: type("", (), {"free": 2**17})())
    cache = make_cache(make_net(source), tmp_path)
    with pytest.raises(DataError, match=r"MB are needed in .* but only 0 MB are free: .* data.views, or --cache.at"):
        cache.prepare([make_examples()])


def test_images_of_the_same_content_share_a_row(source, tmp_path):
    examples = make_examples(augmented=False)
    cache = make_cache(make_net(source), tmp_path, digests=["same"] * 18)
    assert computed(cache, examples) == 1
    rows = next(cache(0, examples, Counting(examples))([[(0, i) for i in range(12)]]))
    assert (rows["pooled"] == rows["pooled"][0]).all()
    assert np.array_equal(rows["row"].numpy(), examples.rows)
