"""Losses against their formulas, written out in double precision."""

import pytest
import torch

from medxfer.config import LossConfig
from medxfer.training.losses import balanced_weights, build_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=GENERATOR)
CLASSES = torch.tensor([0, 1, 2, 0, 0, 1, 0, 0, 2, 1, 0, 0])
LABELS = torch.tensor([[1.0, 0.0, float("nan")], [0.0, 0.0, 1.0], [1.0, float("nan"), 0.0], [0.0, 1.0, 0.0]]).repeat(
    3, 1
)


def loss(targets: torch.Tensor, **settings: object) -> float:
    task = "multiclass" if targets.ndim == 1 else "multilabel"
    return float(build_loss(LossConfig(**settings), task=task, targets=targets)(LOGITS, targets))


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_over_classes(weights, gamma):
    p = LOGITS.double().softmax(dim=1)[torch.arange(12), CLASSES]
    w = torch.ones(12, dtype=torch.float64)
    if weights == "balanced":
        w = (12 / (3 * torch.tensor([7.0, 3.0, 2.0]).double()))[CLASSES]
    expected = float((w * -((1 - p) ** gamma) * p.log()).sum() / w.sum())
    found = loss(CLASSES, name="focal", focal_gamma=gamma, class_weights=weights)
    assert found == pytest.approx(expected, rel=1e-5)
    if gamma == 0:
        assert found == pytest.approx(loss(CLASSES, class_weights=weights), rel=1e-5)


def test_cross_entropy_with_label_smoothing():
    log_p = LOGITS.double().log_softmax(dim=1)
    soft = torch.full((12, 3), 0.1 / 3, dtype=torch.float64)
    soft[torch.arange(12), CLASSES] += 0.9
    assert loss(CLASSES, label_smoothing=0.1) == pytest.approx(float(-(soft * log_p).sum(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("gamma", [None, 0.0, 2.0])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_unknown_labels_are_masked(gamma, weights):
    positive = [6 / 6, 6 / 3, 6 / 3]  # negatives over positives
    total, known = 0.0, 0
    for row, logits in zip(LABELS.tolist(), LOGITS.double().sigmoid().tolist(), strict=True):
        for label, p, weight in zip(row, logits, positive, strict=True):
            if label != label:
                continue
            q = p if label == 1 else 1 - p
            term = -((1 - q) ** (gamma or 0.0)) * torch.tensor(q, dtype=torch.float64).log()
            total += float(term) * (weight if label == 1 and weights == "balanced" else 1.0)
            known += 1
    name = {"name": "cross_entropy"} if gamma is None else {"name": "focal", "focal_gamma": gamma}
    assert loss(LABELS, class_weights=weights, **name) == pytest.approx(total / known, rel=1e-5)


def test_a_batch_without_known_labels_costs_nothing_and_has_finite_gradients():
    logits = LOGITS.clone().requires_grad_()
    value = build_loss(LossConfig(), task="multilabel", targets=LABELS)(logits, torch.full_like(LABELS, torch.nan))
    value.backward()
    assert float(value.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_balanced_weights_give_every_class_the_same_total():
    counts = torch.tensor([7.0, 3.0, 2.0])
    torch.testing.assert_close(balanced_weights(counts) * counts, torch.full((3,), 4.0))
