"""The paper's estimator of the distribution distance: small random samples, averaged over rounds.

In each of K rounds, m mated and m nonmated similarities of an image are drawn without replacement,
and the Wasserstein distance between the two samples is computed; the label is the mean over the
rounds. It is kept for comparison with published labels: `distances` is exact, and costs less.

Draws come from a counter, not from a generator with a state: the number for (seed, image, round,
kind, draw) is a hash of these five, so a draw depends neither on how images are split nor on the
order in which they are worked on. Images are drawn as positions in the canonical order of the run,
by (identity, image_id), in which the images of one identity lie side by side. A caller draws
positions, fetches those embeddings from wherever they are, and computes similarities and
distances.

Shapes: B images, K rounds, m draws of each kind a round, d numbers an embedding.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.hashing import GOLDEN, mix, unit_interval
from sdd_ray.core.wasserstein import Comparisons, distribution_distances, wasserstein

PARTNER_CHUNK = 4096
"""Partners whose embeddings are gathered at once."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingPlan:
    """How much is drawn.

    Attributes:
        seed: Any integer; another seed gives independent draws.
        num_rounds: K. Source: reference code of the paper, 12 repetitions.
        per_round: m, draws of each kind a round. Source: reference code of the paper, 24.

    Raises:
        ValueError: A number is below 1.
    """

    seed: int = 0
    num_rounds: int = 12
    per_round: int = 24

    def __post_init__(self) -> None:
        if self.num_rounds < 1 or self.per_round < 1:
            raise ValueError(
                f"expected num_rounds and per_round of at least 1, got {self.num_rounds} "
                f"and {self.per_round}"
            )


@dataclass(frozen=True, eq=False)
class Places:
    """Where images stand in the canonical order of the run.

    Attributes:
        position: (B,) of the images.
        start: (B,) of the first image of their identity.
        stop: (B,) of the first image after their identity.
        num_images: Images of the run.

    Raises:
        ValueError: A position is not within its identity, or that not within the run.
    """

    position: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    num_images: int

    def __post_init__(self) -> None:
        fits = (self.start >= 0) & (self.start <= self.position) & (self.position < self.stop)
        if not (fits & (self.stop <= self.num_images)).all():
            raise ValueError(
                f"expected 0 <= start <= position < stop <= {self.num_images} for every image"
            )


def image_digests(image_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return (B,) 64-bit digests of image ids, by which draws are keyed.

    Example:
        >>> hex(image_digests(["0001.jpg"])[0])
        '0xaf665b83e6cdd9b9'
    """
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in image_ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def draw(
    digests: NDArray[np.uint64], places: Places, plan: SamplingPlan
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the images that each image is compared with.

    Where fewer than m images can be drawn, all of them are, in every round; -1 fills the rest.

    Args:
        digests: (B,) of the images, by `image_digests`.
        places: Where the images stand.
        plan: How much is drawn.

    Returns:
        (B, K, m) positions of mated partners, the image itself left out, and (B, K, m) positions
        of nonmated partners, the whole identity left out. No position twice in a round.
    """
    num_own = (places.stop - places.start)[:, None, None]
    position, start = places.position[:, None, None], places.start[:, None, None]
    mated = _subsets(digests, places.stop - places.start - 1, 0, plan)
    at_mated = start + mated
    at_mated += at_mated >= position
    others = places.num_images - (places.stop - places.start)
    nonmated = _subsets(digests, others, 1, plan)
    at_nonmated = nonmated + np.where(nonmated >= start, num_own, 0)
    return np.where(mated < 0, -1, at_mated), np.where(nonmated < 0, -1, at_nonmated)


def partner_similarities(
    unit: NDArray[np.float32], pool: NDArray[np.float32], partners: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return (B, K, m) similarities of images with drawn partners, NaN where there is none.

    Args:
        unit: (B, d) unit-length rows of the images.
        pool: (P, d) unit-length rows that hold the partners.
        partners: (B, K, m) rows of the pool, or -1; positions as they are drawn if the pool is
            the run in canonical order.
    """
    flat = partners.reshape(len(partners), -1)
    similarities = np.empty(flat.shape, np.float32)
    step = max(1, PARTNER_CHUNK // max(1, flat.shape[1]))
    for first in range(0, len(flat), step):
        chunk = slice(first, first + step)
        # Not a BLAS product: its bits would depend on threads and alignment (see `similarity`).
        np.einsum("bd,bsd->bs", unit[chunk], pool[flat[chunk]], out=similarities[chunk])
    similarities[flat < 0] = np.nan
    return similarities.reshape(partners.shape)


def round_distances(
    mated: NDArray[np.float32], nonmated: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return (B, K) distance of each round, NaN for images without a comparison of either kind.

    Samples of unequal size are compared as they are, by the general first Wasserstein distance.

    Args:
        mated: (B, K, m) similarities, NaN where there is none; the same number in every round.
        nonmated: (B, K, m) the same.

    Raises:
        ValueError: The shapes differ or are not three-dimensional.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, section 3.2. The label is the mean over the rounds.

    Example:
        >>> mated = np.float32([[[0.8, 0.6]], [[0.5, np.nan]]])
        >>> nonmated = np.float32([[[0.0, 0.2]], [[0.3, 0.1]]])
        >>> round_distances(mated, nonmated).round(6).tolist()
        [[0.6], [0.3]]
    """
    if mated.ndim != 3 or mated.shape != nonmated.shape:
        raise ValueError(
            f"expected two (B, K, m) arrays, got shapes {mated.shape} and {nonmated.shape}"
        )
    per_round = mated.shape[2]
    num_mated = (~np.isnan(mated[:, 0])).sum(axis=1)
    num_nonmated = (~np.isnan(nonmated[:, 0])).sum(axis=1)
    distances = np.full(mated.shape[:2], np.nan)
    full = (num_mated == per_round) & (num_nonmated == per_round)
    if full.any():
        rounds = distribution_distances(
            mated[full].reshape(-1, per_round), nonmated[full].reshape(-1, per_round)
        )
        distances[full] = rounds.reshape(-1, mated.shape[1])
    partial = ~full & (num_mated > 0) & (num_nonmated > 0)
    if partial.any():
        rounds = wasserstein(
            _present(mated[partial]),
            _present(nonmated[partial]),
            int(partial.sum()) * mated.shape[1],
        )
        distances[partial] = rounds.reshape(-1, mated.shape[1])
    return distances


def _present(similarities: NDArray[np.float32]) -> Comparisons:
    """Return the similarities that are there; a row is an image and round."""
    flat = similarities.reshape(-1, similarities.shape[2])
    is_present = ~np.isnan(flat)
    return Comparisons(np.nonzero(is_present)[0], flat[is_present])


def _subsets(
    digests: NDArray[np.uint64], population: NDArray[np.int64], kind: int, plan: SamplingPlan
) -> NDArray[np.int64]:
    """Return (B, K, m) random subsets of range(population), all of it if m is no less.

    Source:
        R. Floyd, in Bentley, "Programming pearls: a sample of brilliance", CACM 30(9), 1987: with
        last = population - m, ..., population - 1, draw from [0, last]; if drawn before, take
        last instead. Every subset is equally likely, and nothing is drawn twice.
    """
    chosen = np.full((len(digests), plan.num_rounds, plan.per_round), -1, np.int64)
    size = np.minimum(population, plan.per_round)
    state = mix(digests ^ mix(np.array([plan.seed & _MASK], np.uint64)))[:, None]
    stream = np.arange(plan.num_rounds, dtype=np.uint64) * np.uint64(2) + np.uint64(kind)
    for step in range(plan.per_round):
        last = (population - size + step)[:, None]
        counter = (stream << np.uint64(32)) + np.uint64(step + 1)
        uniform = unit_interval(mix(state + counter * GOLDEN))
        pick = (uniform * (last + 1)).astype(np.int64)
        is_taken = (chosen[:, :, :step] == pick[:, :, None]).any(axis=2)
        chosen[:, :, step] = np.where(step < size[:, None], np.where(is_taken, last, pick), -1)
    return chosen
