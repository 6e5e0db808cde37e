"""The comparisons of the audit between identities: names of one person, suspects, equal images."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.audit import Split, likeness_factors
from sdd_ray.core.levels import Levels
from sdd_ray.core.near_duplicates import HashPlan, Pairs, TopPairs, linked, plan_hashes
from sdd_ray.core.verdicts import Evidence, Rules, is_certain, ordering, scores, verdicts
from sdd_ray.engine.auditing import AuditedSet, Pool, Survey
from sdd_ray.engine.progress import Progress
from sdd_ray.settings import AuditConfig

IDENTITIES_PER_TILE = 4096
"""Identities compared with as many others in one call. A constant: results are equal to the bit
only for equal tiles."""


@dataclass(frozen=True, eq=False)
class Context:
    """What every comparison needs. `identities`: reference to the survey's, in the object store."""

    config: AuditConfig
    audited: AuditedSet
    pool: Pool
    levels: Levels
    survey: Survey
    identities: Any


@dataclass(frozen=True, eq=False)
class SamePerson:
    """Identities that may be one person under several names.

    Attributes:
        first, second, likeness: (P,) pairs, the most alike first.
        count: Pairs found; fewer may be kept.
        person: (G,) number of the person of each identity, its first identity's.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    likeness: NDArray[np.float32]
    count: int
    person: NDArray[np.int64]


def same_person(context: Context) -> SamePerson:
    """Compare the centroids of all identities with each other."""
    config, identities = context.config, context.survey.identities
    size, match = len(identities.sizes), context.levels.match
    factors = context.pool.put(likeness_factors(identities, match, config.same_person.min_images))
    limits = (config.same_person.likeness, match)
    starts = range(0, size, IDENTITIES_PER_TILE)
    tiles = [slice(start, min(start + IDENTITIES_PER_TILE, size)) for start in starts]
    items = list(combinations_with_replacement(tiles, 2))
    top = TopPairs(config.max_findings)
    for pairs in context.pool.run(
        Progress("compare identities", len(items), unit="tiles"),
        lambda actor, pair: actor.like_identities.remote(pair, context.identities, factors, limits),
        items,
    ):
        top.add(pairs)
    first, second, likeness = top.pairs()
    person = linked(np.arange(size), first, second)
    return SamePerson(first, second, likeness, top.count, person)


@dataclass(frozen=True, eq=False)
class Mixed:
    """An identity that seems to hold several people.

    Attributes:
        split: Groups and similarities; `split.identity` is the number in the set.
        groups: Images of each group, the largest first.
        norm_rank: Median of a group, the largest of the smaller groups'; NaN where lengths say
            nothing.
        is_poor: Whether all smaller groups are put down to poor images instead.
    """

    split: Split
    groups: list[NDArray[np.int64]]
    norm_rank: float
    is_poor: bool


def mixed_identities(context: Context) -> list[Mixed]:
    """Return identities with several groups, those of two people first, the most images first."""
    audited, survey = context.audited, context.survey
    limit = context.config.suspects.poor_norm_rank
    found = []
    for split in survey.splits:
        start, stop = np.searchsorted(audited.codes, [split.identity, split.identity + 1])
        group = survey.group[start:stop]
        groups = [start + np.flatnonzero(group == n + 1) for n in range(split.num_groups)]
        rank = max(float(np.median(audited.norm_rank[rows])) for rows in groups[1:])
        found.append(Mixed(split, groups, rank, rank < limit))
    return sorted(found, key=lambda m: (m.is_poor, -len(m.groups[1]), m.split.identity))


@dataclass(frozen=True, eq=False)
class Suspects:
    """Images that may stand under a wrong identity, in the order of the list.

    Shapes: R suspects.

    Attributes:
        rows: (R,) images of the set.
        nearest: (R,) nearest other identity, -1 for none.
        match_share: (R,) share of the own images that each matches.
        evidence: What is known of them.
        verdict, score, certain: (R,) what follows from it.
        elsewhere: Least similarity to an identity that an image is said to belong to.
        num_weak: Images of which fewer than a quarter of the own images match; R is at most that.
    """

    rows: NDArray[np.int64]
    nearest: NDArray[np.int64]
    match_share: NDArray[np.float32]
    evidence: Evidence
    verdict: NDArray[np.int8]
    score: NDArray[np.float32]
    certain: NDArray[np.bool_]
    elsewhere: float
    num_weak: int


def suspects(context: Context, same: SamePerson, mixed: list[Mixed]) -> Suspects:
    """Search the best other identity of the images that fit their own the least."""
    config, audited, survey = context.config, context.audited, context.survey
    weak = np.flatnonzero(survey.own < context.levels.match)
    most = ceil(config.suspects.max_share * len(audited.codes))
    rows = np.sort(weak[np.argsort(survey.own[weak], kind="stable")[:most]])
    faultless = audited.sample.rows
    faultless = faultless[survey.own[faultless] >= context.levels.match]
    nearest, similarity, share = _nearest(context, np.concatenate([rows, faultless]), same.person)
    elsewhere = _elsewhere(similarity[len(rows) :], context)
    nearest, similarity = nearest[: len(rows)], similarity[: len(rows)]
    in_second = np.zeros(len(audited.codes), bool)
    for identity in mixed:
        if not identity.is_poor:
            in_second[np.concatenate(identity.groups[1:])] = True
    codes, sizes = audited.codes[rows], survey.identities.sizes
    evidence = Evidence(
        codes=codes,
        own=survey.own[rows],
        usual=survey.usual[codes],
        num_mated=sizes[codes] - 1,
        nearest=similarity,
        nearest_size=np.where(nearest < 0, 0, sizes[nearest]),
        norm_rank=audited.norm_rank[rows],
        in_second=in_second[rows],
    )
    options = config.suspects
    rules = Rules(context.levels, elsewhere, options.margin, options.poor_norm_rank)
    verdict = verdicts(evidence, rules)
    score = scores(evidence, verdict, context.levels)
    order = ordering(verdict, score)
    return Suspects(
        rows[order],
        nearest[order],
        share[order],
        evidence.take(order),
        verdict[order],
        score[order],
        is_certain(evidence, verdict)[order],
        elsewhere,
        len(weak),
    )


def _elsewhere(similarity: NDArray[np.float32], context: Context) -> float:
    """Return the similarity that few images without fault reach with another identity."""
    match, fpir = context.levels.match, context.config.thresholds.fpir
    known = np.sort(similarity[~np.isnan(similarity)])
    if len(known) == 0:
        return match
    return max(match, float(known[len(known) - 1 - int(fpir * len(known))]))


def _nearest(
    context: Context, rows: NDArray[np.int64], person: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return the nearest identity of images, the similarity to it, and the own share that matches.

    See `core.audit`.
    """
    nearest = np.full(len(rows), -1, np.int64)
    similarity, share = (np.full(len(rows), np.nan, np.float32) for _ in range(2))
    places = _by_block(context.audited, rows)
    offsets, match, shared = context.audited.offsets, context.levels.match, context.pool.put(person)
    for block, *found in context.pool.run(
        Progress("search suspects", len(rows)),
        lambda actor, block: actor.nearest.remote(
            block, rows[places[block]] - offsets[block], context.identities, shared, match
        ),
        places,
        lambda result: len(places[result[0]]),
    ):
        at = places[block]
        nearest[at], similarity[at], share[at] = found
    return nearest, similarity, share


def _by_block(audited: AuditedSet, rows: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return which of the rows lie in each block; blocks without any are left out."""
    number = np.searchsorted(audited.offsets, rows, side="right") - 1
    return {int(block): np.flatnonzero(number == block) for block in np.unique(number)}


@dataclass(frozen=True, eq=False)
class SharedImages:
    """Images that stand under several identities, by equal pixels or nearly equal embeddings.

    Attributes:
        rows: (M,) images of the set, those of one group side by side.
        group: (M,) number of the group, from 0.
        similarity: (M,) largest similarity to an image of another identity; 1 for equal pixels.
        same_content: (M,) whether an image of another identity has equal pixels.
        num_pairs: Pairs of nearly equal embeddings found, all of them.
        method: exact or hashes. recall: expected share of the pairs at the limit that are found.
    """

    rows: NDArray[np.int64]
    group: NDArray[np.int64]
    similarity: NDArray[np.float32]
    same_content: NDArray[np.bool_]
    num_pairs: int
    method: str
    recall: float


def shared_images(context: Context) -> SharedImages:
    """Compare the images of different identities with each other."""
    config, audited = context.config, context.audited
    top = TopPairs(config.max_findings)
    size = len(audited.codes)
    plan: HashPlan | None = None
    if size <= config.duplicates.exact_images:
        parts = _all_pairs(context)
    else:
        plan = plan_hashes(config.duplicates.similarity, config.duplicates.recall, size)
        parts = _candidates(context, plan)
    for pairs in parts:
        top.add(pairs)
    method, recall = ("exact", 1.0) if plan is None else ("hashes", plan.recall)
    return _grouped(audited, top, method, recall)


def _all_pairs(context: Context) -> Iterator[Pairs]:
    offsets = context.audited.offsets
    blocks = range(len(context.audited.blocks))
    items = list(combinations_with_replacement(blocks, 2))
    limit = context.config.duplicates.similarity
    for (left, right), (i, j, values) in context.pool.run(
        Progress("compare images", len(items), unit="tiles"),
        lambda actor, pair: actor.image_pairs.remote(pair, limit),
        items,
    ):
        yield i + offsets[left], j + offsets[right], values


def _candidates(context: Context, plan: HashPlan) -> Iterator[Pairs]:
    audited, limit = context.audited, context.config.duplicates.similarity
    offsets = audited.offsets
    pairs = _hashed(context, plan)
    items = pairs_by_blocks(pairs, offsets)

    def call(actor: Any, item: tuple[tuple[int, int], NDArray[np.int64]]) -> Any:
        number, run = item
        local = tuple(side[run] - offsets[block] for side, block in zip(pairs, number, strict=True))
        return actor.similarities.remote(number, local)

    progress = Progress("compare candidates", pairs.shape[1], unit="pairs")
    for (left, right), (i, j, values) in context.pool.run(
        progress, call, items, lambda result: len(result[1][0])
    ):
        kept = values >= limit
        yield i[kept] + offsets[left], j[kept] + offsets[right], values[kept]


def pairs_by_blocks(
    pairs: NDArray[np.int64], offsets: NDArray[np.int64]
) -> list[tuple[tuple[int, int], NDArray[np.int64]]]:
    """Return which pairs lie in the same two blocks.

    Args:
        pairs: (2, P) images.
        offsets: (B + 1,) first image of each block, and the number of images.

    Example:
        >>> pairs = np.array([[0, 1, 0], [7, 2, 6]])
        >>> [(blocks, run.tolist()) for blocks, run in pairs_by_blocks(pairs, np.array([0, 5, 9]))]
        [((0, 0), [1]), ((0, 1), [0, 2])]
        >>> pairs_by_blocks(pairs[:, :0], np.array([0, 5, 9]))
        []
    """
    place = np.searchsorted(offsets, pairs, side="right") - 1
    order = np.lexsort((place[1], place[0]))
    blocks = place[:, order]
    starts = np.flatnonzero(np.any(np.diff(blocks, axis=1, prepend=-1), axis=0))
    stops = np.append(starts, len(order))[1:]
    return [
        ((int(blocks[0, start]), int(blocks[1, start])), order[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    ]


def _hashed(context: Context, plan: HashPlan) -> NDArray[np.int64]:
    """Return (2, P) candidate pairs that share a hash in any table, each once."""
    audited, pool, seed = context.audited, context.pool, context.config.seed
    words: dict[int, list[Any]] = {}

    def hashes(actor: Any, block: int) -> Any:
        # The words stay in the object store; what comes back is the number of rows.
        count, *words[block] = actor.hashes.options(num_returns=plan.tables + 2).remote(
            block, plan, seed
        )
        return count

    size, blocks = len(audited.codes), range(len(audited.blocks))
    for _ in pool.run(Progress("hash", size), hashes, blocks, int):
        pass
    codes = pool.put(audited.codes)
    found = np.zeros(0, np.int64)
    for first, second in pool.run(
        Progress("find candidates", plan.tables, unit="tables"),
        lambda actor, table: actor.candidates.remote(
            *([words[block][place] for block in blocks] for place in (table, -1)),
            codes,
            plan.max_differing,
        ),
        range(plan.tables),
    ):
        found = np.union1d(found, first * size + second)
    return np.stack(np.divmod(found, size))


def _grouped(audited: AuditedSet, top: TopPairs, method: str, recall: float) -> SharedImages:
    first, second, values = top.pairs()
    equal = _equal_content(audited)
    ends = [np.concatenate(side) for side in zip((first, second), equal, strict=True)]
    rows = np.unique(np.concatenate(ends))
    group = linked(np.arange(len(rows)), *(np.searchsorted(rows, side) for side in ends))
    similarity = np.full(len(rows), -np.inf, np.float32)
    for side in (first, second):
        np.maximum.at(similarity, np.searchsorted(rows, side), np.minimum(values, 1))
    same_content = np.isin(rows, np.concatenate(equal))
    similarity[same_content] = 1.0
    order = np.lexsort((rows, group))
    number = np.cumsum(np.diff(group[order], prepend=-1) > 0) - 1
    return SharedImages(
        rows[order], number, similarity[order], same_content[order], top.count, method, recall
    )


def _equal_content(audited: AuditedSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return links between images of equal pixels, of which some stand under another identity."""
    known = np.flatnonzero(audited.has_content)
    order = known[np.argsort(audited.content[known], kind="stable")]
    is_equal = audited.content[order[1:]] == audited.content[order[:-1]]
    run = np.concatenate([[0], np.cumsum(~is_equal)]) if len(order) else np.zeros(0, np.int64)
    # Rows are in the order of identities: a run whose ends are of one identity holds no other.
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    stops = np.append(starts[1:], len(order))
    codes = audited.codes[order]
    is_shared = codes[starts] != codes[stops - 1] if len(order) else np.zeros(0, bool)
    linked_rows = np.flatnonzero(is_equal & is_shared[run[1:]])
    return order[linked_rows], order[linked_rows + 1]
