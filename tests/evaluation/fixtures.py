"""Predictions of the three tasks, with labels that depend on the probabilities."""

import numpy as np

from medxfer.evaluation.predictions import Predictions

NAMES = {"binary": ("benign", "malignant"), "multiclass": ("a", "b", "c", "d"), "multilabel": ("x", "y", "z")}


def make_predictions(task: str, *, size: int = 120, seed: int = 0, patients: int | None = 40) -> Predictions:
    rng = np.random.default_rng(seed)
    names = NAMES[task]
    logits = rng.normal(size=(size, len(names)))
    if task == "multilabel":
        probs = 1 / (1 + np.exp(-logits))
        targets = (rng.random(probs.shape) < probs).astype(float)
        targets[rng.random(probs.shape) < 0.2] = np.nan
    else:
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = np.array([rng.choice(len(names), p=p) for p in probs])
    return Predictions(
        paths=[f"{i}.png" for i in range(size)],
        split=["test"] * size,
        targets=targets,
        probs=np.round(probs * 97) / 97 if task == "multilabel" else probs,  # ties between scores
        groups=rng.integers(patients, size=size).astype(str) if patients else None,
        class_names=names,
        task=task,
    )
