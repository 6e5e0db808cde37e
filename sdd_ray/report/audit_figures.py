"""The figures of an audit, each a pure function of plain data.

Shapes: N images, R suspects.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.report import drawing
from sdd_ray.report.drawing import Figure, new_axes, theme, to_svg

Floats = NDArray[np.floating[Any]]

_NUM_BINS = 60
_MAX_POINTS = 4000  # more are thinned out evenly: the page would grow with them
_STYLES: dict[str, tuple[str, str, float]] = {
    "elsewhere": (drawing.ORANGE, "o", 16),
    "second person": (drawing.PURPLE, "D", 14),
    "unknown": (drawing.BLUE, "s", 13),
    "either": (drawing.GREEN, "^", 16),
    "poor": (drawing.INK, "x", 14),
    "unclear": (drawing.GREY, ".", 20),
}


@theme()
def own_histogram(own: Floats, marks: Mapping[str, float]) -> Figure:
    """Return how similar images are to their own identity, with levels marked.

    Args:
        own: (N,) similarities; NaN where there is none.
        marks: Name and similarity of each level.

    Raises:
        ValueError: No similarity is a number.
    """
    known = np.asarray(own, np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        raise ValueError(f"expected at least one similarity, got {len(own)} NaN")
    canvas, axes = new_axes(320, "Similarity to the own identity")
    low = min(float(known.min()), *marks.values()) - 0.02
    axes.hist(known, bins=np.linspace(low, 1.0, _NUM_BINS + 1).tolist(), color=drawing.BLUE)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.22)
    highest = max(marks.values())
    for name, value in marks.items():
        axes.axvline(value, color=drawing.INK, linewidth=1.2, dashes=(4, 2))
        is_last = value == highest  # its name stands to the right, where the other's line is not
        axes.annotate(
            f"{name} {value:.2f}",
            (value, top * 1.14),
            xytext=(5 if is_last else -5, 0),
            textcoords="offset points",
            horizontalalignment="left" if is_last else "right",
            verticalalignment="center",
        )
    axes.set_xlim(low, 1.0)
    axes.set_xlabel("upper quartile of the similarities to the own images")
    axes.set_ylabel("images")
    shares = "; ".join(
        f"{np.count_nonzero(known < value):,} below {name} ({value:.2f})"
        for name, value in marks.items()
    )
    alt = (
        f"Histogram of the similarity of {known.size:,} images to their own identity, median"
        f" {np.median(known):.2f}: {shares}."
    )
    return Figure(to_svg(canvas), alt, "Each image once; single images of an identity left out.")


@theme()
def suspect_map(
    own: Floats, nearest: Floats, verdicts: Sequence[str], levels: tuple[float, float, float]
) -> Figure:
    """Return the suspects by their similarity to their own and to the nearest other identity.

    Args:
        own: (R,) similarity to the own identity.
        nearest: (R,) mean similarity to the nearest other; NaN is left out.
        verdicts: R verdicts, in words.
        levels: Of chance, of a match, and above which an image belongs elsewhere.

    Raises:
        ValueError: No suspect has a nearest identity.
    """
    chance, match, elsewhere = levels
    known = np.flatnonzero(np.isfinite(nearest))
    if len(known) == 0:
        raise ValueError(f"expected suspects with a nearest identity, got {len(nearest)} without")
    names = np.asarray(verdicts, np.str_)
    drawn = known[:: -(-len(known) // _MAX_POINTS)]
    canvas, axes = new_axes(320, "Suspects: own identity against the nearest other")
    for name in reversed(_STYLES):
        chosen = drawn[names[drawn] == name]
        colour, marker, size = _STYLES[name]
        if len(chosen):
            total = int((names[known] == name).sum())
            axes.scatter(
                own[chosen],
                nearest[chosen],
                s=size,
                color=colour,
                marker=marker,
                label=f"{name} ({total:,})",
                alpha=0.8,
                linewidths=1.2 if marker == "x" else 0,
            )
    axes.axhline(elsewhere, color=drawing.INK, linewidth=1.0, dashes=(4, 2))
    axes.axvline(chance, color=drawing.INK, linewidth=1.0, dashes=(4, 2))
    axes.set_xlim(min(float(own[known].min()), 0.0) - 0.02, match + 0.01)
    axes.set_xlabel("similarity to the own identity")
    axes.set_ylabel("to the nearest other")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3, columnspacing=1.2)
    counts = ", ".join(
        f"{count:,} {name}" for name in _STYLES if (count := int((names[known] == name).sum()))
    )
    alt = (
        f"Scatter of {len(known):,} suspects: {counts}. Images above {elsewhere:.2f} resemble"
        f" another identity; those left of {chance:.2f} resemble their own no more than a stranger."
    )
    return Figure(to_svg(canvas), alt, "Lines: belongs elsewhere (horizontal), chance (vertical).")
