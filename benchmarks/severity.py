"""Is a known label learnt: 100 (1 - severity) of drawn faces, scored on people never seen.

    python benchmarks/severity.py [--head flatten] [--people 300] [--degraded-share 1.0]
        [--epochs 8]

The network of the demo is trained on one thread, without Ray, from 1e-3 to 0 by a cosine. After
each epoch Spearman's correlation with the severity, and the mean absolute error in label units, are
printed, of 480 faces of 60 people of another seed.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sdd_ray.core.fitting import Batch, Fitter, Recipe
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.core.schedule import Schedule
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone
from sdd_ray.synthetic.samples import SyntheticSet, draw_sample, keys

BATCH = 32
IMAGES_EACH = 8


def drawn(seed: int, people: int, share: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return faces and their labels."""
    spec = SyntheticSet(seed, people, IMAGES_EACH, degraded_share=share)
    samples = [draw_sample(spec, *key) for key in keys(spec)]
    labels = np.array([100 * (1 - sample.severity) for sample in samples], np.float32)
    return np.stack([sample.image for sample in samples]), labels


def batches(
    images: NDArray[np.uint8], labels: NDArray[np.float32], order: NDArray[np.int64]
) -> Iterator[Batch]:
    """Yield the images in an order."""
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        ones = np.ones(len(rows), np.float32)
        names = np.array([str(row) for row in rows], object)
        yield Batch(images[rows], labels[rows], ones, rows.astype(np.uint64), rows, names)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=("flatten", "average"), default="flatten")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--degraded-share", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = drawn(7, options.people, options.degraded_share)
    strangers, truth = drawn(8, 60, options.degraded_share)
    backbone = load_backbone(RecogniserSpec())
    torch.manual_seed(0)
    network = build_quality(
        QualityArchitecture(backbone.architecture, options.head, 0.2, float(labels.mean()))
    )
    network.start_from(backbone.network)
    recipe = Recipe(Schedule(1e-3, options.epochs, "cosine"), weight_decay=5e-4)
    fitter = Fitter(network, backbone.preprocessing, recipe, torch.device("cpu"))
    whole = len(labels) // BATCH * BATCH
    for epoch in range(options.epochs):
        started = time.monotonic()
        order = np.random.default_rng(epoch).permutation(len(labels))[:whole]
        list(fitter.train_epoch(batches(images, labels, order), epoch, whole // BATCH))
        shown = batches(strangers, truth, np.arange(len(truth)))
        found = np.concatenate([part for _, part in fitter.predictions(shown)])
        print(
            f"epoch {epoch + 1}: Spearman {spearmanr(found, truth).statistic:.3f}, mean absolute"
            f" error {np.abs(found - truth).mean():.1f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
