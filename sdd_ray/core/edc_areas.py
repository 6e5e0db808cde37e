"""Areas that sum up an error versus discard curve in one number, as the field reports them.

An area that is undefined is NaN together with the reason in words, never a number that looks like a
result: a curve that starts without an error cannot show a gain, and a point that too few
comparisons support has no error rate.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.discarding import ErrorDiscardCurve
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS, errors_at


@dataclass(frozen=True)
class Area:
    """An area under a curve, or NaN with the reason why it is undefined."""

    value: float
    reason: str = ""


def pauc(curve: ErrorDiscardCurve, discard_limit: float) -> Area:
    """Return the partial area under a curve up to a discard fraction; lower is better.

    The area is that of the steps, without interpolation between them.

    Args:
        curve: False non-match rate over discard fraction.
        discard_limit: Where the area ends, in (0, 1].

    Returns:
        The area, in [0, discard_limit]; NaN where the curve is undefined before the limit.

    Raises:
        ValueError: `discard_limit` is outside (0, 1].
    """
    if not 0 < discard_limit <= 1:
        raise ValueError(f"expected a discard limit in (0, 1], got {discard_limit}")
    inside = curve.discard_fractions < discard_limit
    reason = _undefined(curve.discard_fractions[inside], curve.errors[inside])
    if reason:
        return Area(math.nan, reason)
    widths = np.diff(np.append(curve.discard_fractions[inside], discard_limit))
    return Area(float(widths @ curve.errors[inside]))


def normalised_pauc(curve: ErrorDiscardCurve, discard_limit: float) -> Area:
    """Return the partial area as a share of what it would be if discarding changed nothing.

    Args:
        curve: False non-match rate over discard fraction.
        discard_limit: Where the area ends, in (0, 1].

    Returns:
        `pauc` over discard_limit * error(0): 1 is no gain, lower is better, above 1 is harm; NaN
        where no error is made at zero discard, since nothing can then be gained.
    """
    return _over_initial_error(pauc(curve, discard_limit), curve, discard_limit)


def best_pauc(curve: ErrorDiscardCurve, discard_limit: float) -> Area:
    """Return the partial area of a quality that knows every error: no quality has a lower one.

    With error e before anything is discarded, the share d that leaves first is of errors alone, and
    (e - d) / (1 - d) is left of the error rate, 0 from d = e on. Of infinitely many comparisons; a
    step function of few lies a little above. The triangle e^2 / 2 that is also in use forgets that
    the rest becomes smaller, and cannot be reached.

    Args:
        curve: Its first error is what a quality starts from.
        discard_limit: Where the area ends, in (0, 1].

    Example:
        >>> curve = ErrorDiscardCurve(
        ...     np.zeros(1), np.array([0.2]), np.zeros(1), np.array([10]))
        >>> round(best_pauc(curve, 0.3).value, 6)
        0.021485
    """
    error = float(curve.errors[0])
    if math.isnan(error):
        return Area(math.nan, _undefined(curve.discard_fractions[:1], curve.errors[:1]))
    end = min(error, discard_limit)
    # Where all are errors the rate stays 1 until nothing remains, and the logarithm has no value.
    return Area(end if error == 1 else end + (1 - error) * math.log1p(-end))


def aoc(curve: ErrorDiscardCurve) -> Area:
    """Return the paper's "area over curve": higher is better, at most 1, and 0.05 for no gain.

    It is 1 - (1 / FNMR(0)) * integral of FNMR from 0 to 0.95, by trapezoids over the 20 points 0,
    0.05, ... 0.95. The integral is not divided by 0.95, so a quality without any use gets 0.05, not
    0. The paper writes 1 - AUC and no more; the division by FNMR(0) is what leads from the curves
    in its figures to the numbers in its tables (0.7994 against 0.7993 printed for LFW).

    Args:
        curve: The `evrc` on its default grid, or any other curve, which is read at these points.

    Returns:
        The area; NaN where no error is made at zero discard or a point is undefined.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, section 4; first author's
        answer in github.com/Tencent/TFace/issues/44 ("1 - AUC(EVRC)").
    """
    errors = errors_at(curve, EVRC_DISCARD_FRACTIONS)
    reason = _undefined(EVRC_DISCARD_FRACTIONS, errors)
    if reason:
        return Area(math.nan, reason)
    under = Area(float(np.trapezoid(errors, EVRC_DISCARD_FRACTIONS)))
    share = _over_initial_error(under, curve, 1.0)
    return Area(1 - share.value, share.reason)


def _over_initial_error(area: Area, curve: ErrorDiscardCurve, width: float) -> Area:
    if area.reason:
        return area
    initial_error = float(curve.errors[0])
    if initial_error == 0:
        return Area(math.nan, "no false non-match at zero discard, so nothing can be gained")
    return Area(area.value / (width * initial_error))


def _undefined(discard_fractions: NDArray[np.float64], errors: NDArray[np.float64]) -> str:
    """Return in words where the first error is undefined, or nothing if none is."""
    undefined = discard_fractions[np.isnan(errors)]
    if undefined.size == 0:
        return ""
    return f"the error rate is undefined at discard fraction {undefined[0]:.4g}"
