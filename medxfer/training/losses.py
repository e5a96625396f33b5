"""What is minimised: cross entropy or focal loss, over classes or over independent labels with unknown targets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medxfer.config import LossConfig


def balanced_weights(counts: Tensor) -> Tensor:
    """Return n / (K · n_k): the weight of class k that makes all K classes count the same (as in scikit-learn).

    Args:
        counts: (K,) images per class, all positive.

    Example:
        >>> balanced_weights(torch.tensor([1.0, 3.0]))
        tensor([2.0000, 0.6667])
    """
    return counts.sum() / (len(counts) * counts)


class ClassLoss(nn.Module):
    """Softmax loss over K classes, the mean over images weighted by their class.

    L = Σ w(y) · l(logits, y) / Σ w(y). Cross entropy has l = −log p(y), with label smoothing ε mixing in the uniform
    distribution; the focal loss has l = −(1 − p(y))^γ · log p(y) (Lin 2017), which is cross entropy at γ = 0.

    Shapes: logits (B, K), int64 targets (B,) → scalar.
    """

    weights: Tensor | None

    def __init__(self, *, name: str, weights: Tensor | None, label_smoothing: float, focal_gamma: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights, persistent=False)
        self.focal: nn.Module | None = None
        if name == "focal":
            from monai.losses.focal_loss import FocalLoss  # slow to import

            self.focal = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=focal_gamma, reduction="none")

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and targets (B,) → scalar."""
        if self.focal is None:
            return F.cross_entropy(logits, targets, weight=self.weights, label_smoothing=self.label_smoothing)
        losses = self.focal(logits, targets.unsqueeze(1)).sum(dim=1)
        weights = torch.ones_like(losses) if self.weights is None else self.weights[targets]
        return (losses * weights).sum() / weights.sum()


class LabelLoss(nn.Module):
    """Sigmoid loss over K independent labels; unknown targets (NaN) are masked.

    L = Σ m · l / Σ m over all images and labels with m = 1 where the target is known. `positive_weights` multiply the
    loss of positive targets. With no known target in a batch L is 0.

    Shapes: logits (B, K), float targets (B, K) of 1, 0 or NaN → scalar.
    """

    positive_weights: Tensor | None

    def __init__(
        self, *, name: str, positive_weights: Tensor | None, label_smoothing: float, focal_gamma: float
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("positive_weights", positive_weights, persistent=False)
        self.focal: nn.Module | None = None
        if name == "focal":
            from monai.losses.focal_loss import FocalLoss  # slow to import

            self.focal = FocalLoss(use_softmax=False, gamma=focal_gamma, reduction="none")

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and targets (B, K) → scalar."""
        known = ~torch.isnan(targets)
        hard = torch.where(known, targets, 0.0).to(logits.dtype)
        if self.focal is None:
            soft = hard * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        else:
            losses = self.focal(logits, hard)
        if self.positive_weights is not None:
            losses = losses * torch.where(hard > 0, self.positive_weights, 1.0)
        return (losses * known).sum() / known.sum().clamp(min=1)


def build_loss(config: LossConfig, *, task: str, targets: Tensor) -> nn.Module:
    """Build the loss of a task.

    Args:
        config: its settings.
        task: binary, multiclass or multilabel.
        targets: of the training split, int64 (N,) or float (N, K) with NaN; class frequencies come from here.
    """
    balanced = config.class_weights == "balanced"
    shared = {"name": config.name, "label_smoothing": config.label_smoothing, "focal_gamma": config.focal_gamma}
    if task == "multilabel":
        positives = (targets == 1).sum(dim=0).float()
        negatives = (targets == 0).sum(dim=0).float()
        weights = negatives.clamp(min=1) / positives.clamp(min=1)
        return LabelLoss(positive_weights=weights if balanced else None, **shared)
    weights = balanced_weights(torch.bincount(targets).float())
    return ClassLoss(weights=weights if balanced else None, **shared)
