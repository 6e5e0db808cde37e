"""What quality-weighted template averaging gains on real faces.

    python benchmarks/template_weights.py EMBEDDINGS QUALITIES [--splits FILE] [--size 3]

EMBEDDINGS is a dataset of embed, QUALITIES one of score for the same images, FILE splits.parquet of
the model folder: only people that training never saw are compared then. In every draw each person's
images are put at random into templates of some images, which are

- the mean of the images' embeddings,
- their mean weighted by quality 0-100 (after the model's map), and by its square,
- the one image of best quality, and the mean of the better half,

and all templates are compared with each other. Printed is the false non-match rate at two false
match rates: mean over draws, and how often it is below and above the plain mean's.
"""

import argparse
from collections import defaultdict

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.core.error_rates import fnmr, threshold_at_fmr
from sdd_ray.core.similarity import normalise
from sdd_ray.core.templates import weighted_templates
from sdd_ray.store.dataset import embedding_matrix, open_dataset, read_parquet
from sdd_ray.store.location import Location

_FMRS = (1e-2, 1e-3)


def read(given: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray, NDArray]:
    """Return unit embeddings, numbers of people and qualities 0-100 of the images."""
    table = open_dataset(given.embeddings, ["embed"]).read(["image_id", "identity", "embedding"])
    scored = open_dataset(given.qualities, ["score"]).read(["image_id", "quality"])
    if given.splits:
        splits = read_parquet(Location(given.splits).absolute())
        held = splits.filter(pc.equal(splits["part"], "holdout"))["identity"]
        table = table.filter(pc.is_in(table["identity"], held.combine_chunks()))
    place = pc.index_in(table["image_id"], scored["image_id"])
    quality = np.asarray(scored["quality"].take(place), np.float64)
    people = np.unique(np.asarray(table["identity"].to_pylist()), return_inverse=True)[1]
    unit = normalise(embedding_matrix(table["embedding"]))[0]
    return unit, people, np.maximum(quality, 0)


def templates_of(people: NDArray, size: int, generator: np.random.Generator) -> NDArray:
    """Return the number of each image's template; what is left over goes to a person's last one."""
    order = np.lexsort((generator.random(len(people)), people))
    ordered = people[order]
    rank = np.arange(len(people)) - np.searchsorted(ordered, ordered)
    most = np.maximum(np.bincount(people)[ordered] // size, 1) - 1
    keys = np.empty(len(people), np.int64)
    keys[order] = ordered * len(people) + np.minimum(rank // size, most)
    return np.unique(keys, return_inverse=True)[1]


def weights_of(quality: NDArray, templates: NDArray, number: int) -> dict[str, NDArray]:
    """Return the weights of the images for each way of making templates."""
    order = np.lexsort((-quality, templates))
    sorted_templates = templates[order]
    rank = np.empty(len(quality), np.int64)
    rank[order] = np.arange(len(quality)) - np.searchsorted(sorted_templates, sorted_templates)
    size = np.bincount(templates, minlength=number)[templates]
    return {
        "plain mean": np.ones(len(quality)),
        "weighted by quality": quality + 1.0,
        "weighted by quality squared": (quality + 1.0) ** 2,
        "the better half": (rank < (size + 1) // 2).astype(np.float64),
        "the best image alone": (rank == 0).astype(np.float64),
    }


def main() -> None:
    """Print the error rates of all ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings")
    parser.add_argument("qualities")
    parser.add_argument("--splits")
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--draws", type=int, default=50)
    given = parser.parse_args()
    unit, people, quality = read(given)
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for draw in range(given.draws):
        templates = templates_of(people, given.size, np.random.default_rng([0, draw]))
        number = int(templates.max()) + 1
        owners = np.zeros(number, np.int64)
        owners[templates] = people
        first, second = np.triu_indices(number, 1)
        same = owners[first] == owners[second]
        for name, weights in weights_of(quality, templates, number).items():
            made = weighted_templates(unit, weights, templates, number)
            similarities = (made @ made.T)[first, second]
            mated, nonmated = similarities[same], similarities[~same]
            for fmr in _FMRS:
                threshold = threshold_at_fmr(nonmated, fmr).threshold
                found[name, fmr].append(fnmr(mated, threshold))
    comparisons = f"{int(same.sum()):,} mated and {int((~same).sum()):,} nonmated comparisons"
    print(
        f"{len(people):,} images of {int(people.max()) + 1:,} people in {number:,} templates,"
        f" {comparisons}, {given.draws} draws"
    )
    for fmr in _FMRS:
        plain = np.array(found["plain mean", fmr])
        for name in weights_of(quality, templates, number):
            rates = np.array(found[name, fmr])
            print(
                f"FMR {fmr:g}, {name}: FNMR {rates.mean():.2%},"
                f" below the plain mean's in {np.mean(rates < plain):.0%} of the draws,"
                f" above in {np.mean(rates > plain):.0%}"
            )


if __name__ == "__main__":
    main()
