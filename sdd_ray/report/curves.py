"""Error versus discard curves of several qualities in one picture.

Shapes: K points of a curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sdd_ray.report import drawing
from sdd_ray.report.drawing import Figure, new_axes, theme, to_svg

CurveKind = Literal["model", "label", "severity", "norm", "measure", "random", "oracle"]

_NUM_POINTS = 400
_NAME_GAP = 0.075  # of the height of the axes: two names need this much to be told apart


@dataclass(frozen=True, eq=False)
class Curve:
    """An error versus discard curve with the name and the kind of its quality.

    Attributes:
        name: Written at the end of its line.
        kind: What the quality is; decides colour, dashes and marker.
        discard_fractions: (K,) increasing, from 0.
        errors: (K,) error rates in [0, 1]; NaN where undefined, a gap in the line.
        low, high: (K,) ends of the interval of each error, NaN where there is none; None: no band.
    """

    name: str
    kind: CurveKind
    discard_fractions: NDArray[np.floating[Any]]
    errors: NDArray[np.floating[Any]]
    low: NDArray[np.floating[Any]] | None = None
    high: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class _Style:
    colour: str
    dashes: Any
    marker: str
    width: float
    order: float


_STYLES: dict[CurveKind, _Style] = {
    "model": _Style(drawing.BLUE, "-", "o", 2.6, 6),
    "label": _Style(drawing.ORANGE, (0, (6, 1.6)), "s", 2.0, 5),
    "severity": _Style(drawing.GREEN, (0, (5, 1.6, 1.2, 1.6)), "^", 2.0, 4),
    "norm": _Style(drawing.PURPLE, (0, (3, 1.4)), "D", 2.0, 3),
    "measure": _Style(drawing.GREEN, (0, (1.5, 1.2, 5, 1.2)), "P", 1.6, 2.5),
    "random": _Style(drawing.GREY, (0, (1.2, 1.6)), "x", 1.8, 2),
    "oracle": _Style(drawing.INK, (0, (8, 2, 1, 2, 1, 2)), "v", 1.4, 1),
}

_OTHERS: tuple[tuple[Any, str], ...] = (
    ((0, (7, 1.5)), "s"),
    ((0, (2.5, 1.2)), "^"),
    ((0, (7, 1.5, 1.5, 1.5)), "D"),
    ((0, (1.2, 1.2)), "v"),
    ((0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)), "X"),
)
"""Dashes and markers of the second and later curves of one kind."""


@theme()
def error_curves(
    curves: Sequence[Curve],
    title: str,
    *,
    stepped: bool,
    discarded: str = "comparisons",
    discard_limit: float = 0.95,
) -> Figure:
    """Return error versus discard curves in one pair of axes, each named at its end.

    Args:
        curves: What to draw; "model" lies on top.
        title: Such as "FNM-EDC, threshold fixed at FMR 0.001".
        stepped: True for curves exact at every quality value, drawn as steps; False for values on
            a coarse grid, drawn as points joined by lines.
        discarded: What the discard fractions are shares of.
        discard_limit: Right end of the axis, in (0, 1].

    Raises:
        ValueError: There is no curve, or none with a number.
    """
    if not any(np.isfinite(curve.errors).any() for curve in curves):
        raise ValueError(
            f"expected a curve with at least one error rate, got {len(curves)} without"
        )
    canvas, axes = new_axes(310, title)
    shown = [_thinned(curve, discard_limit) if stepped else curve for curve in curves]
    styles = _styles(curves)
    for curve, style in zip(curves, styles, strict=True):
        _draw_band(axes, curve, style)
    for curve, style in zip(shown, styles, strict=True):
        _draw_curve(axes, curve, style, stepped)
    drawn = [c.errors for c in shown] + [c.high for c in curves if c.high is not None]
    highest = max(float(np.nanmax(values)) for values in drawn if np.isfinite(values).any())
    axes.set_ylim(0, 106 * highest if highest > 0 else 1)
    axes.set_xlim(0, 100 * discard_limit)
    axes.set_xlabel(f"{discarded} discarded (%)")
    axes.set_ylabel("FNMR (%)")
    _name_at_the_ends(axes, shown, discard_limit)
    return Figure(to_svg(canvas), f"{title}. {_curves_in_words(curves)}")


def _thinned(curve: Curve, discard_limit: float) -> Curve:
    """Return the same steps read at no more points than a screen can show."""
    grid = np.linspace(0, discard_limit, _NUM_POINTS + 1)
    at = np.searchsorted(curve.discard_fractions, grid, "right") - 1
    return Curve(curve.name, curve.kind, grid, curve.errors[at])


def _styles(curves: Sequence[Curve]) -> list[_Style]:
    """Return the style of each curve; those of one kind share a colour, and nothing else."""
    found: list[_Style] = []
    seen: dict[str, int] = {}
    for curve in curves:
        again = seen.get(curve.kind, 0)
        seen[curve.kind] = again + 1
        style = _STYLES[curve.kind]
        if again:
            dashes, marker = _OTHERS[(again - 1) % len(_OTHERS)]
            style = replace(style, dashes=dashes, marker=marker)
        found.append(style)
    return found


def _draw_curve(axes: Axes, curve: Curve, style: _Style, stepped: bool) -> None:
    axes.plot(
        100 * curve.discard_fractions,
        100 * curve.errors,
        color=style.colour,
        linestyle=style.dashes,
        linewidth=style.width,
        drawstyle="steps-post" if stepped else "default",
        marker="" if stepped else style.marker,
        markersize=4.5,
        zorder=2 + style.order / 10,
    )


def _draw_band(axes: Axes, curve: Curve, style: _Style) -> None:
    """Draw where 95 % of the draws lie, straight between the discard fractions that have them."""
    if curve.low is None or curve.high is None:
        return
    known = np.isfinite(curve.low) & np.isfinite(curve.high)
    axes.fill_between(
        100 * curve.discard_fractions[known],
        100 * curve.low[known],
        100 * curve.high[known],
        color=style.colour,
        alpha=0.13,
        linewidth=0,
        zorder=1.5,
    )


def _name_at_the_ends(axes: Axes, curves: Sequence[Curve], discard_limit: float) -> None:
    """Write each curve's name to the right of its last value, moved apart where they crowd."""
    top = axes.get_ylim()[1]
    ends = sorted(
        ((*_last_point(curve, discard_limit), curve) for curve in curves), key=lambda end: end[1]
    )
    for height, (x, y, curve) in zip(_apart([y / top for _, y, _ in ends]), ends, strict=True):
        style = _STYLES[curve.kind]
        is_defined = bool(np.isfinite(x))
        axes.annotate(
            curve.name if is_defined else f"{curve.name}: undefined",
            (x if is_defined else 100 * discard_limit, y),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=style.colour,
            fontweight="bold" if curve.kind == "model" else "normal",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style.colour,
                "linewidth": 0.8 if is_defined else 0,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _last_point(curve: Curve, discard_limit: float) -> tuple[float, float]:
    """Return the last point in per cent; (NaN, 0) for a curve without any."""
    shown = np.isfinite(curve.errors) & (curve.discard_fractions <= discard_limit)
    if not shown.any():
        return np.nan, 0.0
    last = np.flatnonzero(shown)[-1]
    return 100 * float(curve.discard_fractions[last]), 100 * float(curve.errors[last])


def _apart(heights: Sequence[float]) -> list[float]:
    """Return increasing heights moved upwards, then down from the top, to keep the gap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _NAME_GAP if placed else 0.0))
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - _NAME_GAP
    return placed


def _curves_in_words(curves: Sequence[Curve]) -> str:
    """Return the error of each curve at 0 and at about 30 % discarded, as a sentence."""
    parts = []
    for curve in curves:
        at = int(np.searchsorted(curve.discard_fractions, 0.3, "right")) - 1
        parts.append(
            f"{curve.name} from {_percent(curve.errors[0])} to {_percent(curve.errors[at])}"
        )
    return "False non-match rate at 0 % and at 30 % discarded: " + "; ".join(parts) + "."


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if np.isfinite(share) else "undefined"
