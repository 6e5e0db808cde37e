"""What a quality is worth: error rates after the comparisons of lowest quality are discarded.

Three curves are in use, and their numbers must not be mixed:

- `fnm_edc`, the error versus discard characteristic of ISO/IEC 29794-1: mated comparisons only, the
  threshold fixed before anything is discarded; `fm_edc` is the same of nonmated ones.
- `evrc`, the error versus reject curve of the paper and its successors: mated and nonmated
  comparisons are discarded together, and the threshold is solved again on the nonmated comparisons
  that remain, so that the false match rate stays put.

Three rules hold for all. The quality of a comparison is the lower one of its two images, so that
discarding by it is the same as discarding images. Comparisons of equal quality leave together: a
quality threshold cannot separate them, and an order made up among them would decide the result. A
quality that is NaN (failure to assess) is lower than every number and leaves first.

Random and oracle baselines are no functions of their own: call the same function with random
qualities, or with those of the oracle.

Shapes: M mated comparisons, N nonmated comparisons, K points of a curve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.discarding import (
    ErrorDiscardCurve,
    at_least,
    false_non_matches,
    lowest_ranks,
    rank_qualities,
    step_curve,
    top_nonmated,
)
from sdd_ray.core.error_rates import (
    Similarities,
    check_similarities,
    is_false_match,
    is_false_non_match,
)

# 0, 0.05, ... 0.95: the grid of the paper's figures. Divided, since 3 * 0.05 > 0.15 in binary.
EVRC_DISCARD_FRACTIONS: NDArray[np.float64] = np.arange(20) / 20
EVRC_DISCARD_FRACTIONS.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Comparisons of one kind, mated or nonmated, with the quality of each.

    Attributes:
        similarities: (M,) or (N,) comparison scores, larger is more alike, no NaN.
        pair_qualities: As many qualities in any unit, larger is better, as `pair_qualities` gives;
            NaN and minus infinity both mean failure to assess.

    Raises:
        ValueError: The shapes differ, there is no comparison, or a similarity is NaN.
    """

    similarities: Similarities
    pair_qualities: NDArray[np.float32] | NDArray[np.float64]

    def __post_init__(self) -> None:
        check_similarities(self.similarities, "comparison")
        if self.similarities.shape != self.pair_qualities.shape:
            raise ValueError(
                "expected one pair quality for each similarity, got shapes "
                f"{self.pair_qualities.shape} and {self.similarities.shape}"
            )


def pair_qualities(
    first: NDArray[np.float32] | NDArray[np.float64],
    second: NDArray[np.float32] | NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the quality of each comparison: the lower one of its two images.

    Args:
        first: (M,) quality of one image of each comparison, NaN for a failure to assess.
        second: (M,) the same of the other image.

    Returns:
        (M,) the minimum; NaN where either is NaN.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> pair_qualities(np.array([3.0, 5.0, np.nan]), np.array([4.0, 2.0, 9.0])).tolist()
        [3.0, 2.0, nan]
    """
    if first.shape != second.shape:
        raise ValueError(
            f"expected two arrays of equal shape, got {first.shape} and {second.shape}"
        )
    return np.minimum(first, second).astype(np.float64)


def fnm_edc(mated: Comparisons, threshold: float) -> ErrorDiscardCurve:
    """Return the exact error versus discard characteristic for false non-matches.

    The threshold stays what it was before anything was discarded. The discard fraction is a share
    of the M mated comparisons. There is one point for each distinct pair quality: at the point of
    quality t, the comparisons of a quality below t are gone.

    Args:
        mated: M comparisons of one person with their qualities.
        threshold: Similarity, such as `threshold_at_fmr(...).threshold`; NaN makes every error NaN.

    Returns:
        The curve; its first error is `fnmr(mated.similarities, threshold)`.

    Source:
        ISO/IEC 29794-1:2024, 11.2; Grother and Tabassi, "Performance of Biometric Quality
        Measures", 2007. Discarding by the minimum: Schlett et al., arXiv:2303.13294.

    Example:
        >>> mated = Comparisons(np.array([0.1, 0.9, 0.2, 0.8]), np.array([1.0, 2.0, 2.0, 3.0]))
        >>> curve = fnm_edc(mated, threshold=0.5)
        >>> curve.discard_fractions.tolist(), curve.errors.round(4).tolist()
        ([0.0, 0.25, 0.75], [0.5, 0.3333, 0.0])
    """
    return _edc(mated, is_false_non_match(mated.similarities, threshold), threshold)


def fm_edc(nonmated: Comparisons, threshold: float) -> ErrorDiscardCurve:
    """Return the exact error versus discard characteristic for false matches.

    As `fnm_edc`, of nonmated comparisons whose similarity is above the fixed threshold. A quality
    made to predict false non-matches need not lower it.

    Args:
        nonmated: N comparisons of two people with their qualities.
        threshold: Similarity; NaN makes every error NaN.

    Source:
        ISO/IEC 29794-1:2024, 11.2.
    """
    return _edc(nonmated, is_false_match(nonmated.similarities, threshold), threshold)


def evrc(
    mated: Comparisons,
    nonmated: Comparisons,
    fmr: float,
    discard_fractions: NDArray[np.float64] = EVRC_DISCARD_FRACTIONS,
    population: NDArray[np.float64] | None = None,
) -> ErrorDiscardCurve:
    """Return the paper's error versus reject curve: the threshold is solved again at each point.

    The discard fraction is a share of the images, as in the seed (its X with a share of the best
    samples), where `population` gives their qualities: the worst images leave, and with them every
    comparison they take part in. Without it, as in evaluations on lists of pairs, it is a share of
    all M + N comparisons, of which the more numerous kind (nonmated, as a rule) dominates it.
    Either way as many leave as ties allow without exceeding the fraction.

    Args:
        mated: M comparisons of one person with their qualities.
        nonmated: N comparisons of two people, qualities in the same unit.
        fmr: False match rate to hold, in (0, 1).
        discard_fractions: (K,) increasing, from 0, below 1.
        population: Qualities of all images, of which the fractions are shares; None for all
            comparisons. NaN is a failure to assess.

    Returns:
        The curve at the given fractions. An error is NaN where too few nonmated comparisons remain
        for `fmr`, or where no mated comparison remains.

    Raises:
        ValueError: `fmr` or `discard_fractions` is out of range.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, section 3.1.
    """
    check_fractions(discard_fractions)
    given = [mated.pair_qualities, nonmated.pair_qualities]
    ranks = rank_qualities(np.concatenate(given if population is None else [*given, population]))
    size, pairs = mated.similarities.size, mated.similarities.size + nonmated.similarities.size
    leaving = ranks.of if population is None else ranks.of[pairs:]
    lowest = lowest_ranks(np.bincount(leaving, minlength=ranks.number), discard_fractions)
    of_mated, of_nonmated = ranks.of[:size], ranks.of[size:pairs]
    there, there_nonmated = (
        at_least(np.bincount(of, minlength=ranks.number))[lowest] for of in (of_mated, of_nonmated)
    )
    places = np.arange(pairs - size, dtype=np.int32)  # only their ranks matter
    top = top_nonmated(places, places, nonmated.similarities, fmr)
    solved = top.solve(of_nonmated[top.first], lowest, there_nonmated, [fmr], of_nonmated)
    errors = false_non_matches(mated.similarities, of_mated, lowest, solved.thresholds)[0]
    return ErrorDiscardCurve(
        discard_fractions=discard_fractions,
        errors=errors,
        thresholds=np.where(np.isnan(errors), np.nan, solved.thresholds[0]),
        num_remaining=there,
    )


def errors_at(
    curve: ErrorDiscardCurve, discard_fractions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the errors of a curve when at most the given fractions are discarded.

    Args:
        curve: A step function of K points.
        discard_fractions: (J,) values in [0, 1); between two steps the lower one counts, since the
            comparisons of the next quality could only leave together.

    Returns:
        (J,) false non-match rates.

    Raises:
        ValueError: A fraction is outside [0, 1).
    """
    if not np.all((discard_fractions >= 0) & (discard_fractions < 1)):
        raise ValueError(f"expected discard fractions in [0, 1), got {discard_fractions}")
    return curve.errors[np.searchsorted(curve.discard_fractions, discard_fractions, "right") - 1]


def _edc(
    comparisons: Comparisons, is_wrong: NDArray[np.bool_], threshold: float
) -> ErrorDiscardCurve:
    ranks = rank_qualities(comparisons.pair_qualities)
    total, wrong = (
        np.bincount(of, minlength=ranks.number) for of in (ranks.of, ranks.of[is_wrong])
    )
    return step_curve(total, wrong, threshold)


def check_fractions(discard_fractions: NDArray[np.float64]) -> None:
    """Raise ValueError unless the fractions increase from 0 to below 1."""
    fractions = np.asarray(discard_fractions)
    in_order = fractions.ndim == 1 and fractions.size > 0 and bool(np.all(np.diff(fractions) > 0))
    if not in_order or fractions[0] != 0 or not fractions[-1] < 1:
        raise ValueError(
            f"expected discard fractions that increase from 0 to below 1, got {fractions}"
        )
