"""From what is known of suspects to a verdict on each, a score, and an order.

Shapes: R suspects.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.audit import (
    EITHER,
    ELSEWHERE,
    POOR,
    SECOND_PERSON,
    UNCLEAR,
    UNKNOWN,
)
from sdd_ray.core.levels import Levels


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of R suspects: images of which fewer than a quarter of the own images match.

    Attributes:
        codes: Their identities.
        own: Similarity to the own identity.
        usual: Median of that over the images of the identity.
        num_mated: Other images of the identity.
        nearest: Mean similarity to the nearest other identity; NaN where there is none.
        nearest_size: Its images.
        norm_rank: Share of all images with a shorter embedding; NaN where lengths say nothing.
        in_second: Whether the image is in a smaller group of an identity that holds several people.
    """

    codes: NDArray[np.int64]
    own: NDArray[np.float32]
    usual: NDArray[np.float32]
    num_mated: NDArray[np.int64]
    nearest: NDArray[np.float32]
    nearest_size: NDArray[np.int64]
    norm_rank: NDArray[np.float32]
    in_second: NDArray[np.bool_]

    def take(self, order: NDArray[np.int64]) -> "Evidence":
        """Return the same of some of the suspects, in the order given."""
        return Evidence(**{item.name: getattr(self, item.name)[order] for item in fields(self)})


@dataclass(frozen=True)
class Rules:
    """Limits of the verdicts.

    Attributes:
        levels: Of the set.
        elsewhere: Least mean similarity to an identity that an image is said to belong to.
        margin: Least difference of similarities that counts.
        poor_norm_rank: Embeddings of a smaller rank are those of poor images.
    """

    levels: Levels
    elsewhere: float
    margin: float
    poor_norm_rank: float


def verdicts(evidence: Evidence, rules: Rules) -> NDArray[np.int8]:
    """Return (R,) codes into `sdd_ray.core.audit.VERDICTS`.

    Of an identity with two images both are suspects alike. If exactly one of them belongs elsewhere
    that explains both, and the other is unclear; otherwise either may be the wrong one.
    """
    e = evidence
    with np.errstate(invalid="ignore"):
        elsewhere = (e.nearest > rules.elsewhere) & (e.nearest - e.own >= rules.margin)
        at_chance = (e.own < rules.levels.chance) & ~elsewhere
        out_of_place = at_chance & (e.usual - e.own >= rules.margin)
        poor = out_of_place & (e.norm_rank < rules.poor_norm_rank)
    explained = np.isin(e.codes, e.codes[elsewhere & (e.num_mated == 1)])
    result = np.full(len(e.codes), UNCLEAR, np.int8)
    result[out_of_place] = UNKNOWN
    result[poor] = POOR
    result[(e.num_mated == 1) & at_chance & ~explained] = EITHER
    result[e.in_second] = SECOND_PERSON
    result[elsewhere] = ELSEWHERE
    return result


def scores(evidence: Evidence, verdict: NDArray[np.int8], levels: Levels) -> NDArray[np.float32]:
    """Return (R,) how much is wrong: how far the own similarity lies below what it should reach.

    That is the similarity to the other identity where the image belongs elsewhere, and the level of
    a match for all others.
    """
    reached = np.where(verdict == ELSEWHERE, evidence.nearest, np.float32(levels.match))
    return np.asarray(reached - evidence.own, np.float32)


def is_certain(evidence: Evidence, verdict: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return (R,) whether a verdict rests on more than one image of each identity it names."""
    single = (verdict == ELSEWHERE) & (evidence.nearest_size < 2)
    return np.asarray((verdict < EITHER) & (evidence.num_mated > 1) & ~single)


def norm_ranks(norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N,) the share of all embeddings that were shorter; NaN if all were about as long.

    Args:
        norms: (N,) lengths before scaling; NaN where unknown.

    Example:
        >>> norm_ranks(np.float32([3, 1, 2, 2])).tolist()
        [0.75, 0.0, 0.25, 0.25]
        >>> norm_ranks(np.float32([1, 1])).tolist()
        [nan, nan]
    """
    known = np.sort(norms[np.isfinite(norms)])
    if len(known) == 0 or known[-1] - known[0] <= 1e-3 * abs(known[-1]):
        return np.full(len(norms), np.nan, np.float32)
    ranks = np.searchsorted(known, norms, side="left") / len(known)
    return np.where(np.isfinite(norms), ranks, np.nan).astype(np.float32)


def ordering(verdict: NDArray[np.int8], score: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (R,) the order of a list: by verdict, then the largest score first."""
    return np.lexsort((-score, verdict))
