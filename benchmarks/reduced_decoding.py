"""Whether large JPEGs may be decoded at reduced scale: speed, and the AUROC of pooled features both ways.

    python benchmarks/reduced_decoding.py --data FOLDER --weights FILE

FOLDER holds dermoscopy_isic/ and fullsize/. Reduced: libjpeg's scaled decoding (Pillow's `draft`) to at least the
wanted size, then as always. Features of the frozen network and a logistic regression, cross-validated with one set of
folds; the difference with its interval is by bootstrap over images.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medxfer.data.fitting import fit_image
from medxfer.data.reading import read_image
from medxfer.models.inception import InceptionBackbone
from medxfer.models.weights import load_source


def whole(file: Path, size_px: int) -> np.ndarray:
    """Decode as the product does."""
    return fit_image(read_image(file, channels=3), size_px=size_px, fit="pad")


def reduced(file: Path, size_px: int) -> np.ndarray:
    """Decode at the smallest scale of the JPEG that is not below the wanted size."""
    with Image.open(file) as picture:
        scale = size_px / max(picture.size)
        picture.draft("RGB", (round(picture.width * scale), round(picture.height * scale)))
        return fit_image(np.asarray(picture.convert("RGB")), size_px=size_px, fit="pad")


@torch.inference_mode()
def features(files: list[Path], weights: str, size_px: int, decode: object) -> np.ndarray:
    """Return pooled features (N, 2048)."""
    source = load_source(weights)
    backbone = InceptionBackbone().eval()
    backbone.load_state_dict(source.state_dict or {})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (source.input_mean, source.input_std))
    found = []
    for start in range(0, len(files), 16):
        batch = np.stack([decode(file, size_px) for file in files[start : start + 16]])  # type: ignore[operator]
        images = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 - mean) / std
        found.append(backbone(images).flatten(1).float().numpy())
    return np.concatenate(found)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDXFER_TEST_DATA"))
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size_px", type=int, default=299)
    asked = parser.parse_args()
    folders = {
        "dermoscopy_isic": sorted((asked.data / "dermoscopy_isic" / "images").glob("*.jpg")),
        "fullsize": sorted((asked.data / "fullsize").glob("*.jpg")),
    }
    print(f"{'images per second':<20}{'whole':>8}{'reduced':>9}{'ratio':>7}{'grey levels apart':>19}")
    for name, files in folders.items():
        rates = []
        for decode in (whole, reduced):
            start = time.perf_counter()
            pictures = [decode(file, asked.size_px) for file in files[:100]]
            rates.append((len(pictures) / (time.perf_counter() - start), pictures))
        apart = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(rates[0][1], rates[1][1], strict=True)])
        print(f"{name:<20}{rates[0][0]:>8.0f}{rates[1][0]:>9.0f}{rates[1][0] / rates[0][0]:>7.1f}{apart:>19.2f}")
    table = pd.read_csv(asked.data / "dermoscopy_isic" / "labels.csv")
    files = [asked.data / "dermoscopy_isic" / path for path in table["path"]]
    truth = (table["label"] == "malignant").to_numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = {}
    for decode in (whole, reduced):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        values = features(files, asked.weights, asked.size_px, decode)
        scores[decode] = cross_val_predict(model, values, truth, cv=folds, method="predict_proba")[:, 1]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(truth), size=len(truth)) for _ in range(2000)]
    differences = [
        roc_auc_score(truth[rows], scores[reduced][rows]) - roc_auc_score(truth[rows], scores[whole][rows])
        for rows in drawn
        if 0 < truth[rows].sum() < len(rows)
    ]
    low, high = np.quantile(differences, [0.025, 0.975])
    both = [roc_auc_score(truth, scores[decode]) for decode in (whole, reduced)]
    print(f"\nAUROC, dermoscopy_isic: whole {both[0]:.4f}, reduced {both[1]:.4f}, ", end="")
    print(f"difference {both[1] - both[0]:+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
