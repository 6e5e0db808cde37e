"""What the choices of training bring: models against labels, norms and chance, over several seeds.

    python benchmarks/quality_worth.py --work FOLDER --recogniser NET.pt --preset imagenet
        --images FACES --embeddings EMBEDDINGS [--other OTHER_EMBEDDINGS]
        [--far-images FACES --far-embeddings EMBEDDINGS] [--seeds 5] [--only NAME ...]

Every seed draws 400 of the people to train and 100 to evaluate, labels the training people among
themselves (exactly: scipy over all pairs), and trains each variant on one thread, all images in
memory and without Ray, for a few epochs of which the last one counts, with a cosine schedule. The
evaluation compares all images of the 100 people with each other. OTHER are embeddings of the same
images by another recogniser; the far set is another set of images. Results are lines of
results.jsonl in the work folder: a variant and seed that is there is not run again. `--table`
prints them.

FACES are folders of `<person>/.../<image>.jpg`, EMBEDDINGS are datasets written by embed.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from sdd_ray.core.assessment import assess
from sdd_ray.core.comparisons import ComparedPairs, compare_tile
from sdd_ray.core.fitting import Batch, Fitter, Recipe
from sdd_ray.core.label_weights import LabelWeights
from sdd_ray.core.losses import Loss
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.core.preprocess import PRESETS
from sdd_ray.core.ranked_sides import ComparedSides, Protocol
from sdd_ray.core.schedule import Schedule
from sdd_ray.core.similarity import normalise
from sdd_ray.core.splits import split_identities
from sdd_ray.formats.items import Item
from sdd_ray.formats.reading import read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import SourceConfig
from sdd_ray.store.dataset import embedding_matrix, open_dataset
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone

BATCH = 64
FMRS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    labels: str = "exact"
    uneven: bool = False
    weighting: str = "none"
    balance: float = 0.0
    head: str = "flatten"
    dropout: float = 0.5
    frozen_share: float = 0.0
    from_zero: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "recipe": Variant(),
    "sampled labels": Variant(labels="sampled"),
    "uneven identities": Variant(uneven=True),
    "uneven, weighted by num_mated": Variant(uneven=True, weighting="num_mated"),
    "bounded labels": Variant(labels="bounded"),
    "bounded, weighted by error_bound": Variant(labels="bounded", weighting="error_bound"),
    "head: average": Variant(head="average"),
    "no dropout": Variant(dropout=0.0),
    "no flip": Variant(recipe={"flip": False}),
    "prediction starts at 0": Variant(from_zero=True),
    "loss: L2": Variant(recipe={"loss": Loss("l2")}),
    "ranking term": Variant(recipe={"loss": Loss("huber", 1.0, 10.0)}),
    "balance 1": Variant(balance=1.0),
    "degraded images": Variant(recipe={"degrade_share": 0.3}),
    "AdamW": Variant(recipe={"kind": "adamw"}),
    "moving average": Variant(recipe={"ema": 0.99}),
    "head alone": Variant(frozen_share=1.0),
}


@dataclass(frozen=True)
class Faces:
    """A set: images, people, unit embeddings and norms by one or two recognisers."""

    ids: list[str]
    people: NDArray[np.object_]
    images: NDArray[np.uint8]
    unit: NDArray[np.float32]
    norm: NDArray[np.float32]
    other: NDArray[np.float32] | None

    def take(self, rows: NDArray[np.int64]) -> "Faces":
        """Return some of the images."""
        other = None if self.other is None else self.other[rows]
        return Faces(
            [self.ids[row] for row in rows],
            self.people[rows],
            self.images[rows],
            self.unit[rows],
            self.norm[rows],
            other,
        )


def load_faces(images: str, embeddings: str, other: str | None) -> Faces:
    """Return the embedded images of a folder, in order of their keys."""
    table = open_dataset(embeddings, ["embed"]).read(["image_id", "identity", "embedding", "norm"])
    table = table.sort_by("image_id")
    ids = table["image_id"].to_pylist()
    source = open_source(SourceConfig(kind="folder", path=images))
    with ThreadPoolExecutor(1) as threads:
        read = read_faces(source, [Item(name) for name in ids], threads)
        pixels = np.stack([face.pixels for face in read])
    unit = normalise(embedding_matrix(table["embedding"]))[0]
    second = None
    if other:
        rows = open_dataset(other, ["embed"]).read(["image_id", "embedding"]).sort_by("image_id")
        if rows["image_id"].to_pylist() != ids:
            raise SystemExit(f"{other}: expected the images of {embeddings}, got others")
        second = normalise(embedding_matrix(rows["embedding"]))[0]
    people = np.array(table["identity"].to_pylist(), object)
    return Faces(ids, people, pixels, unit, np.asarray(table["norm"]), second)


def distances(faces: Faces, labels: str, seed: int) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return labels in [0, 100], bounds on the errors of distances, label units per distance."""
    rng = np.random.default_rng(seed)
    similarities = faces.unit @ faces.unit.T
    codes = np.unique(faces.people.astype(str), return_inverse=True)[1]
    rounds = []
    bound = np.zeros(len(codes))
    for _ in range(12 if labels == "sampled" else 1):
        values = np.empty(len(codes))
        for row, own in enumerate(similarities):
            same = codes == codes[row]
            nonmated = own[~same]
            same[row] = False
            if labels == "sampled":
                nonmated = rng.choice(nonmated, 24, replace=False)
            elif labels == "bounded":
                # As many strangers as make the standard error uneven: 8 to 512.
                nonmated = rng.choice(nonmated, int(2 ** rng.uniform(3, 9)), replace=False)
                bound[row] = 4 * nonmated.std() / np.sqrt(len(nonmated))
            values[row] = wasserstein_distance(own[same], nonmated)
        low, high = values.min(), values.max()
        rounds.append(100 * (values - low) / (high - low))
    return np.mean(rounds, axis=0).astype(np.float32), bound, float(100 / (high - low))


def uneven_rows(people: NDArray[np.object_], seed: int) -> NDArray[np.int64]:
    """Return rows of which each person keeps two to all."""
    rng = np.random.default_rng([seed, 1])
    kept = []
    for name in np.unique(people.astype(str)):
        rows = np.flatnonzero(people == name)
        kept.append(rng.permutation(rows)[: rng.integers(2, len(rows) + 1)])
    return np.sort(np.concatenate(kept))


def comparisons(unit: NDArray[np.float32], people: NDArray[np.object_]) -> list[ComparedPairs]:
    """Return all mated and all nonmated comparisons."""
    codes = np.unique(people.astype(str), return_inverse=True)[1]
    tiles = [
        compare_tile(unit, codes, (start, min(start + 256, len(unit))), 1.0, 0)
        for start in range(0, len(unit), 256)
    ]
    return [
        ComparedPairs(
            *(
                np.concatenate([getattr(tile[side], name) for tile in tiles])
                for name in ("first", "second", "similarities")
            )
        )
        for side in (0, 1)
    ]


def worth(faces: Faces, quality: NDArray[Any]) -> dict[str, float]:
    """Return normalised pAUC and FNMR at 20 % discard of a quality, for each recogniser and FMR."""
    found = {}
    for name, unit in (("own", faces.unit), ("other", faces.other)):
        if unit is None:
            continue
        sides = ComparedSides.of(*comparisons(unit, faces.people), FMRS)
        protocol = Protocol(FMRS, fractions=(0.0, 0.2))
        for result in assess(sides, quality.astype(np.float64), protocol):
            found[f"{name} pauc {result.fmr:g}"] = result.areas[0.3].normalised.value
            found[f"{name} fnmr {result.fmr:g}"] = float(result.table_edc[1])
    return found


def train(
    variant: Variant, faces: Faces, options: argparse.Namespace, seed: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Train a variant; return what predicts qualities."""
    if variant.uneven:
        faces = faces.take(uneven_rows(faces.people, seed))
    targets, bounds, label_per_distance = distances(faces, variant.labels, seed)
    _, place, count = np.unique(faces.people.astype(str), return_inverse=True, return_counts=True)
    mated = count[place] - 1
    weights = LabelWeights.fit(
        targets,
        variant.balance,
        variant.weighting,
        num_mated=mated,
        error_bound=bounds,
        label_per_distance=label_per_distance,
    ).apply(targets, mated, bounds)
    spec = RecogniserSpec("torch", options.recogniser, preprocessing=PRESETS[options.preset])
    backbone = load_backbone(spec)
    start = 0.0 if variant.from_zero else float(targets.mean())
    architecture = QualityArchitecture(backbone.architecture, variant.head, variant.dropout, start)
    torch.manual_seed(seed)
    network = build_quality(architecture)
    network.start_from(backbone.network)
    network.freeze(variant.frozen_share)
    network.to(memory_format=torch.channels_last)
    schedule = Schedule(options.learning_rate, options.epochs, "cosine")
    recipe = replace(Recipe(schedule, weight_decay=5e-4, seed=seed), **variant.recipe)
    fitter = Fitter(network, backbone.preprocessing, recipe, torch.device("cpu"))
    keys = np.arange(len(targets)).astype(np.uint64)

    def batches(rows: NDArray[np.int64], images: NDArray[np.uint8], known: bool) -> Any:
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            if known and len(some) < BATCH:
                return
            zeros = np.zeros(len(some), np.float32)
            yield Batch(
                images[some],
                targets[some] if known else zeros,
                weights[some].astype(np.float32) if known else zeros,
                keys[some] if known else some.astype(np.uint64),
                some,
                np.array(some, object),
            )

    for epoch in range(options.epochs):
        order = np.random.default_rng([seed, epoch, 2]).permutation(len(targets))
        steps = len(targets) // BATCH
        list(fitter.train_epoch(batches(order, faces.images, True), epoch, steps))

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = np.arange(len(images))
        return np.concatenate([p for _, p in fitter.predictions(batches(rows, images, False))])

    return predict


def baselines(evaluated: Faces, far: Faces | None, seed: int) -> dict[str, Any]:
    """Return the worth of what needs no training."""
    found = {}
    for name, faces in (("near", evaluated), ("far", far)):
        if faces is None:
            continue
        grey = faces.images.astype(np.float32).mean(axis=3)
        inner = grey[:, 1:-1, 1:-1]
        laplacian = (
            grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        ) - 4 * inner
        qualities = {
            "labels (oracle)": distances(faces, "exact", seed)[0],
            "embedding norm": faces.norm,
            "sharpness": laplacian.var(axis=(1, 2)),
            "contrast": grey.std(axis=(1, 2)),
            "random": np.random.default_rng(seed).random(len(grey)),
        }
        for method, quality in qualities.items():
            found.setdefault(method, {})[name] = worth(faces, np.asarray(quality))
    return found


def run(job: tuple[str, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of one variant and seed."""
    name, seed = job
    torch.set_num_threads(1)
    faces = load_faces(options.images, options.embeddings, options.other)
    parts = split_identities(faces.people, 0.2, 1e-9, seed)
    # The one person that would choose the epoch is trained on, too: the last epoch counts.
    held = np.array([parts[person] == "holdout" for person in faces.people])
    trained, evaluated = (faces.take(np.flatnonzero(rows)) for rows in (~held, held))
    far = None
    if options.far_images:
        far = load_faces(options.far_images, options.far_embeddings, None)
        some = np.isin(far.people, np.unique(far.people.astype(str))[:100])
        far = far.take(np.flatnonzero(some))
    if name == "baselines":
        found = baselines(evaluated, far, seed)
        return [{"variant": k, "seed": seed, **values} for k, values in found.items()]
    started = time.monotonic()
    predict = train(VARIANTS[name], trained, options, seed)
    result: dict[str, Any] = {"variant": name, "seed": seed}
    result["seconds"] = time.monotonic() - started
    quality = predict(evaluated.images)
    result["near"] = worth(evaluated, quality)
    labels = distances(evaluated, "exact", seed)[0]
    ranks = [np.argsort(np.argsort(values)) for values in (quality, labels)]
    result["spearman"] = float(np.corrcoef(*ranks)[0, 1])
    if far is not None:
        result["far"] = worth(far, predict(far.images))
    return [result]


def table(file: Path) -> None:
    """Print means and spreads over seeds, and paired differences from the recipe."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    names = list(dict.fromkeys(line["variant"] for line in lines))
    by = {name: {x["seed"]: x for x in lines if x["variant"] == name} for name in names}
    keys = [("near", "own pauc 0.01"), ("near", "own pauc 0.001"), ("near", "other pauc 0.001")]
    keys += [("far", "own pauc 0.001")]
    print("| variant | seeds | " + " | ".join(f"{a} {b}" for a, b in keys) + " | Spearman |")
    for name, runs in by.items():
        cells = []
        for part, key in keys:
            have = {s: r[part][key] for s, r in runs.items() if part in r and key in r[part]}
            if not have:
                cells.append("-")
                continue
            values = np.array(list(have.values()))
            text = f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"
            base = by.get("recipe", {})
            paired = [v - base[s][part][key] for s, v in have.items() if s in base]
            if name in VARIANTS and name != "recipe" and len(paired) > 1:
                error = np.std(paired, ddof=1) / np.sqrt(len(paired))
                text += f" ({np.mean(paired):+.3f} ± {error:.3f})"
            cells.append(text)
        ranks = [r["spearman"] for r in runs.values() if "spearman" in r]
        cells.append(f"{np.mean(ranks):.3f}" if ranks else "-")
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("work", "recogniser", "images", "embeddings"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--preset", default="arcface")
    parser.add_argument("--other")
    parser.add_argument("--far-images")
    parser.add_argument("--far-embeddings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    file = Path(options.work) / "results.jsonl"
    if options.table:
        table(file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    done = {(x["variant"], x["seed"]) for x in map(json.loads, lines)}
    done |= {("baselines", seed) for name, seed in done if name == "random"}
    names = options.only or ("baselines", *VARIANTS)
    wanted = [(n, s) for s in range(options.seeds) for n in names if (n, s) not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, maxtasksperchild=1) as pool:
        for results in pool.imap_unordered(partial(run, options=options), wanted):
            with file.open("a") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in results)
            first = results[0]
            sys.stderr.write(f"{first['variant']}, seed {first['seed']}\n")


if __name__ == "__main__":
    main()
