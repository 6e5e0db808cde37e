"""What similarities betray about identities: images out of place, people mixed or named twice.

Everything rests on two levels of the set itself (`core.levels`): the similarity above which two
images match, and the one below which they are at chance, no more alike than two people may be.

Shapes: N images of d numbers, rows of one identity side by side; n images of one identity, of which
m stand for all; G identities; R suspects.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from sdd_ray.core.error_rates import is_false_match
from sdd_ray.core.levels import Levels
from sdd_ray.core.near_duplicates import Pairs, duplicate_groups, pairs_above
from sdd_ray.core.similarity import products

VERDICTS = ("elsewhere", "second_person", "unknown", "either", "poor", "unclear")
"""Verdict by code: belongs to another identity; to the smaller part of an identity that holds two
people; fits nowhere, so an unknown person; fits nowhere, one of only two images, either of which
may be the wrong one; fits nowhere, with a short embedding, so a poor image; none of these."""
ELSEWHERE, SECOND_PERSON, UNKNOWN, EITHER, POOR, UNCLEAR = range(len(VERDICTS))

_TILE_ROWS = 1024
_CENTROIDS_PER_TILE = 4096
_UPPER = 0.75
"""Quantile of the similarities to the own identity: up to a quarter of its other images may be
wrong, and show the same wrong person, without hiding each other."""
SMALL = 5
"""Identities with fewer images need a match on average before they are taken for one person."""


def own_similarities(unit: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (n,) how similar each image is to its own identity, NaN for a single image.

    That is the upper quartile of its similarities to the others: where it is below the level of a
    match, fewer than a quarter of the own images match.

    Args:
        unit: (n, d) all images of one identity.
        chosen: (m,) ascending numbers of the rows that stand for all.

    Example:
        >>> own_similarities(np.float32([[1, 0], [1, 0], [1, 0], [0, 1]]), np.arange(4)).tolist()
        [1.0, 1.0, 1.0, 0.0]
    """
    upper = np.full(len(unit), np.nan, np.float32)
    standing = np.ascontiguousarray(unit[chosen])
    for start in range(0, len(unit), _TILE_ROWS):
        rows = np.arange(start, min(start + _TILE_ROWS, len(unit)))
        similarities = products(unit[rows], standing)
        itself = chosen[None, :] == rows[:, None]
        count = len(chosen) - itself.sum(axis=1)
        similarities[itself] = -np.inf
        similarities.sort(axis=1)
        at = np.flatnonzero(count > 0)
        place = len(chosen) - count[at] + _UPPER * (count[at] - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, len(chosen) - 1)
        below, above = similarities[at, low], similarities[at, high]
        upper[rows[at]] = below + (place - low) * (above - below)
    return upper


def match_shares(
    unit: NDArray[np.float32],
    codes: NDArray[np.int64],
    rows: NDArray[np.int64],
    match: float,
) -> NDArray[np.float32]:
    """Return (R,) the share of the other images of its identity that each row matches.

    Args:
        unit: (N, d) a block of whole identities, those of one identity side by side.
        codes: (N,) their numbers, ascending.
        rows: (R,) rows of the block.
        match: Two images match above it.
    """
    shares = np.full(len(rows), np.nan, np.float32)
    for code in np.unique(codes[rows]):
        start, stop = np.searchsorted(codes, [code, code + 1])
        chosen = np.flatnonzero(codes[rows] == code)
        found = np.zeros(len(chosen), np.int64)
        for first in range(start, stop, _CENTROIDS_PER_TILE):
            others = np.arange(first, min(first + _CENTROIDS_PER_TILE, stop))
            matches = is_false_match(products(unit[rows[chosen]], unit[others]), match)
            found += (matches & (others[None, :] != rows[chosen, None])).sum(axis=1)
        if stop - start > 1:
            shares[chosen] = found / (stop - start - 1)
    return shares


def people_within(
    unit: NDArray[np.float32], levels: Levels, min_images: int, duplicate: float
) -> NDArray[np.int64]:
    """Return (m,) groups of one identity that look like different people, 0 for no group.

    Groups are joined by average linkage while they are more similar, on average, than at chance;
    those left count if their images match each other on average and enough of them are distinct.
    Group 1 is the largest. With fewer than two groups, all are 0.

    Args:
        unit: (m, d) images of one identity.
        levels: Of the set.
        min_images: Distinct images that make a group.
        duplicate: Images from this similarity on are not distinct.

    Example:
        >>> unit = np.float32([[1, 0], [0, 1], [1, 0.1], [1, 0.2], [0.1, 1]])
        >>> unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        >>> people_within(unit, Levels(0.5, 0.2), 2, 0.9999).tolist()
        [1, 2, 1, 1, 2]
    """
    groups = np.zeros(len(unit), np.int64)
    if len(unit) < 2 * min_images:
        return groups
    gram = products(unit, unit)
    gram = (gram + gram.T) / np.float32(2)
    if gram.min() >= levels.chance:
        return groups
    distances = np.maximum(1.0 - gram.astype(np.float64), 0.0)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average")
    clusters = fcluster(tree, 1.0 - levels.chance, "distance")
    found = []
    for number in np.unique(clusters):
        rows = np.flatnonzero(clusters == number)
        within = gram[np.ix_(rows, rows)]
        distinct = np.count_nonzero(~np.tril(within >= duplicate, -1).any(axis=1))
        if distinct >= min_images and mean_off_diagonal(within) > levels.match:
            found.append(rows)
    if len(found) < 2:
        return groups
    for number, rows in enumerate(sorted(found, key=lambda rows: (-len(rows), rows[0])), 1):
        groups[rows] = number
    return groups


def mean_off_diagonal(gram: NDArray[np.float32]) -> float:
    """Return the mean similarity between different images, NaN if there is only one.

    Example:
        >>> mean_off_diagonal(np.float32([[1, 0.5], [0.5, 1]]))
        0.5
    """
    n = len(gram)
    if n < 2:
        return float("nan")
    return float((gram.sum(dtype=np.float64) - gram.trace(dtype=np.float64)) / (n * (n - 1)))


@dataclass(frozen=True)
class Split:
    """An identity that seems to hold several people.

    Attributes:
        identity: Its number within the block.
        num_groups: Groups, of which the two largest follow.
        within: Mean similarity within each of the two.
        between: Mean similarity between them.
    """

    identity: int
    num_groups: int
    within: tuple[float, float]
    between: float


@dataclass(frozen=True, eq=False)
class BlockSurvey:
    """What the similarities within the identities of a block say.

    Attributes:
        own: (N,) similarity to the own identity (`own_similarities`); NaN for a single image.
        usual: (G,) median of `own` over the images of each identity; NaN for a single image.
        means: (G, d) mean embedding of each identity.
        within: (G,) mean similarity between its images; NaN for a single image.
        person: (N,) number of the group (`people_within`), 0 for none.
        splits: Identities that hold several groups.
        duplicate_of: (N,) row of the first image of the group of near-duplicates, -1 for none.
        duplicate_similarity: (N,) largest similarity to another image of that group; NaN for none.
        num_duplicate_pairs: Pairs of near-duplicates within identities.
    """

    own: NDArray[np.float32]
    usual: NDArray[np.float32]
    means: NDArray[np.float32]
    within: NDArray[np.float64]
    person: NDArray[np.int64]
    splits: list[Split]
    duplicate_of: NDArray[np.int64]
    duplicate_similarity: NDArray[np.float32]
    num_duplicate_pairs: int


@dataclass(frozen=True)
class SurveyPlan:
    """How identities are looked at.

    Attributes:
        levels: Of the set.
        min_images: Distinct images that make a group.
        duplicate: Near-duplicates from this similarity on.
        max_images: Images that stand for an identity.
        seed: Draws them, together with the number of the identity in the set.
    """

    levels: Levels
    min_images: int
    duplicate: float
    max_images: int
    seed: int


def survey_block(
    unit: NDArray[np.float32], codes: NDArray[np.int64], plan: SurveyPlan
) -> BlockSurvey:
    """Return what the similarities within each identity of a block of whole identities say.

    Args:
        unit: (N, d) rows of unit length, those of one identity side by side.
        codes: (N,) number of the identity of each row in the whole set.
        plan: How they are looked at.
    """
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    stops = np.append(starts, len(codes))[1:]
    own, best = (np.full(len(unit), np.nan, np.float32) for _ in range(2))
    person, first = np.zeros(len(unit), np.int64), np.full(len(unit), -1, np.int64)
    means = np.zeros((len(starts), unit.shape[1]), np.float32)
    within, usual = np.full(len(starts), np.nan), np.full(len(starts), np.nan, np.float32)
    splits, num_pairs = [], 0
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        rows = unit[start:stop]
        total = rows.sum(axis=0, dtype=np.float64)
        n = len(rows)
        means[number] = total / n
        if n == 1:
            continue
        squares = np.square(rows, dtype=np.float64).sum()
        within[number] = (total @ total - squares) / (n * (n - 1))
        chosen = _standing(n, plan, int(codes[start]))
        own[start:stop] = own_similarities(rows, chosen)
        usual[number] = np.median(own[start:stop])
        person[start + chosen] = people_within(
            rows[chosen], plan.levels, plan.min_images, plan.duplicate
        )
        if person[start:stop].any():
            splits.append(_split(number, rows, person[start:stop]))
        groups, best[start:stop], pairs = duplicate_groups(rows, plan.duplicate)
        first[start:stop] = np.where(groups < 0, -1, groups + start)
        num_pairs += pairs
    return BlockSurvey(own, usual, means, within, person, splits, first, best, num_pairs)


def _standing(n: int, plan: SurveyPlan, code: int) -> NDArray[np.int64]:
    """Return the ascending numbers of the images that stand for an identity."""
    if n <= plan.max_images:
        return np.arange(n)
    generator = np.random.default_rng([plan.seed, code])
    return np.sort(generator.choice(n, plan.max_images, replace=False))


def _split(number: int, unit: NDArray[np.float32], person: NDArray[np.int64]) -> Split:
    first, second = (unit[person == group] for group in (1, 2))
    within = (
        mean_off_diagonal(products(first, first)),
        mean_off_diagonal(products(second, second)),
    )
    between = float(products(first, second).mean(dtype=np.float64))
    return Split(number, int(person.max()), within, between)


@dataclass(frozen=True, eq=False)
class Identities:
    """All identities of a set, for comparisons between them.

    Attributes:
        centroids: (G, d) mean embeddings scaled to unit length; zero where the mean is.
        lengths: (G,) length of the mean embeddings.
        sizes: (G,) images.
        within: (G,) mean similarity between an identity's images; NaN for a single image.
    """

    centroids: NDArray[np.float32]
    lengths: NDArray[np.float32]
    sizes: NDArray[np.int64]
    within: NDArray[np.float64]


def nearest_identity(
    unit: NDArray[np.float32],
    codes: NDArray[np.int64],
    identities: Identities,
    person: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (R,) the nearest identity of another person, and the mean similarity to its images.

    Nearest is the one with the largest cosine between image and centroid; of equal ones the first.
    -1 and NaN where there is no identity of another person.

    Args:
        unit: (R, d) images.
        codes: (R,) their own identities.
        identities: All of the set.
        person: (G,) number of the person of each identity; those of one number are one person.
    """
    best = np.full(len(unit), -np.inf, np.float32)
    nearest = np.full(len(unit), -1, np.int64)
    for start in range(0, len(unit), _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        itself = person[codes[rows], None]
        for first in range(0, len(identities.sizes), _CENTROIDS_PER_TILE):
            columns = slice(first, first + _CENTROIDS_PER_TILE)
            similarities = products(unit[rows], identities.centroids[columns])
            similarities[person[None, columns] == itself] = -np.inf
            place = similarities.argmax(axis=1)
            found = similarities[np.arange(len(place)), place]
            better = found > best[rows]
            best[rows] = np.where(better, found, best[rows])
            nearest[rows] = np.where(better, first + place, nearest[rows])
    mean = np.where(nearest < 0, np.nan, best * identities.lengths[nearest])
    return nearest, mean.astype(np.float32)


def like_identities(
    identities: Identities,
    factors: NDArray[np.float32],
    tiles: tuple[slice, slice],
    likeness: float,
    match: float,
) -> Pairs:
    """Return pairs of identities that may be one person, with their likeness.

    Args:
        identities: All of the set.
        factors: (G,) see `likeness_factors`.
        tiles: Identities to compare with each other, two different runs or the same one twice.
        likeness: Least likeness of a pair.
        match: Two images match above it.
    """
    rows, columns = tiles
    scaled = [identities.centroids[tile] * factors[tile, None] for tile in tiles]
    i, j, found = pairs_above(scaled[0], scaled[1], likeness, is_same=rows == columns)
    i, j = i + rows.start, j + columns.start
    cosine = found / (factors[i] * factors[j])
    between = cosine * identities.lengths[i] * identities.lengths[j]
    smaller = np.minimum(identities.sizes[i], identities.sizes[j])
    # With few images a likeness is mostly luck; then the images must match on average too.
    kept = (smaller >= SMALL) | is_false_match(between, match)
    return i[kept], j[kept], found[kept]


def likeness_factors(identities: Identities, match: float, min_images: int) -> NDArray[np.float32]:
    """Return (G,) factors that turn the cosine of two centroids into a likeness.

    likeness(a, b) = mean similarity between a and b / sqrt(within(a) within(b)), about 1 for two
    halves of one person. A `within` below `match`, of an identity without order, counts as `match`;
    an identity with fewer than `min_images` images gets 0 and is like nobody.
    """
    usual = np.nanmedian(identities.within) if np.isfinite(identities.within).any() else match
    within = np.where(np.isnan(identities.within), usual, identities.within)
    factors = identities.lengths / np.sqrt(np.maximum(within, max(match, 1e-6)))
    return np.where(identities.sizes < min_images, 0, factors).astype(np.float32)
