"""The figures of a report, each a pure function of plain data.

A figure describes itself in words (`alt`) from the same numbers that it draws. Values that are NaN
are left out of a figure and counted in its words, never drawn as something else.

Shapes: N images, M and L similarities of an image; faces are (H, W, 3) uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from sdd_ray.core.statistics import rank_correlation
from sdd_ray.report import drawing
from sdd_ray.report.drawing import Figure, new_axes, new_canvas, theme, to_png, to_svg

Floats = NDArray[np.floating[Any]]
Faces = Sequence[NDArray[np.uint8]]

_NUM_LABEL_BINS = 40
_NUM_SIMILARITY_BINS = 48
_MAX_VECTOR_POINTS = 3000  # more are drawn as pixels, or the page would grow with them


@dataclass(frozen=True, eq=False)
class ImageSimilarities:
    """One image with its two similarity samples.

    Attributes:
        name: What the panel is called, such as "good" or "poor".
        mated: (M,) similarities to images of the same person.
        nonmated: (L,) similarities to images of other people.
        face: (H, W, 3) RGB pixels of the image.
        label: Its pseudo-label.
    """

    name: str
    mated: Floats
    nonmated: Floats
    face: NDArray[np.uint8]
    label: float


@dataclass(frozen=True, eq=False)
class FaceTile:
    """One face of a strip: its PNG file and the words below it."""

    png: bytes
    value: str
    caption: str


@dataclass(frozen=True)
class FaceStrip:
    """Faces in order, laid out by the page in as many columns as fit."""

    tiles: tuple[FaceTile, ...]
    caption: str = ""


@theme()
def label_histogram(labels: Floats, caption: str = "") -> Figure:
    """Return how the pseudo-labels are spread: over [0, 100] if scaled to it, else as they lie.

    Args:
        labels: (N,) pseudo-labels; NaN where an image has none.
        caption: The line below the figure.

    Raises:
        ValueError: No label is a number.
    """
    known = np.asarray(labels, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        raise ValueError(
            f"expected at least one pseudo-label that is a number, got {len(labels)} NaN"
        )
    canvas, axes = new_axes(290, "Pseudo-labels")
    digits = _decimals(known)
    is_scaled = digits == 0 and known.min() >= 0 and known.max() <= 100
    edges = np.histogram_bin_edges(known, _NUM_LABEL_BINS, (0, 100) if is_scaled else None)
    axes.hist(known, bins=edges.tolist(), color=drawing.BLUE, rwidth=0.86)
    median = float(np.median(known))
    is_left = median < edges[0] + 0.7 * (edges[-1] - edges[0])
    axes.axvline(median, color=drawing.INK, linewidth=1.2, dashes=(4, 2))
    axes.annotate(
        f"median {median:.{digits}f}",
        (median, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5 if is_left else -5, -4),
        textcoords="offset points",
        horizontalalignment="left" if is_left else "right",
        verticalalignment="top",
    )
    axes.set_ymargin(0.14)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("pseudo-label")
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = np.quantile(known, [0.05, 0.95])
    missing = len(labels) - known.size
    alt = (
        f"Histogram of {known.size:,} pseudo-labels between {known.min():.{digits}f} and "
        f"{known.max():.{digits}f}, median {median:.{digits}f}; nine in ten lie between"
        f" {low:.{digits}f} and {high:.{digits}f}"
        f"{f'; {missing:,} images without a label are left out' if missing else ''}."
    )
    return Figure(to_svg(canvas), alt, caption)


@theme()
def similarity_distributions(images: Sequence[ImageSimilarities]) -> list[Figure]:
    """Return one panel per image: its mated and nonmated similarities beside the face.

    All panels share both scales, so that they can be compared. The distance in the title is the
    first Wasserstein distance of the samples drawn.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, figures 2 and 3.

    Raises:
        ValueError: There is no image, or one has no mated or no nonmated similarity.
    """
    if not images or not all(image.mated.size and image.nonmated.size for image in images):
        raise ValueError("expected images with at least one mated and one nonmated similarity each")
    everything = np.concatenate([np.r_[image.mated, image.nonmated] for image in images])
    edges = np.linspace(everything.min() - 0.02, everything.max() + 0.02, _NUM_SIMILARITY_BINS + 1)
    tallest = max(
        _shares(sample, edges).max() for image in images for sample in (image.mated, image.nonmated)
    )
    digits = _decimals([image.label for image in images])
    return [_similarity_panel(image, edges, tallest, digits) for image in images]


@theme()
def similarity_histograms(
    mated: Floats, nonmated: Floats, thresholds: Sequence[tuple[str, float]]
) -> Figure:
    """Return how the similarities of all comparisons lie, and the thresholds between them.

    Args:
        mated: (M,) similarities of comparisons of one person.
        nonmated: (L,) the same of two people.
        thresholds: What each is called, and where it lies; NaN ones are left out.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, figure 2, of a set.
    """
    ends = [float(f(sample)) for sample in (mated, nonmated) for f in (np.min, np.max)]
    edges = np.linspace(min(ends) - 0.01, max(ends) + 0.01, 2 * _NUM_SIMILARITY_BINS + 1)
    canvas, axes = new_axes(300, "Similarities of all comparisons")
    for sample, colour, name in (
        (nonmated, drawing.ORANGE, "nonmated"),
        (mated, drawing.BLUE, "mated"),
    ):
        shares = _shares(sample, edges)
        axes.stairs(shares, edges, fill=True, facecolor=colour, alpha=0.28)
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=f"{name} ({sample.size:,})")
    known = sorted((value, name) for name, value in thresholds if np.isfinite(value))
    for row, (value, name) in enumerate(known):
        # The lowest is named on its left, so that no line runs through a name.
        is_left = row == 0 and len(known) > 1
        axes.axvline(value, ymax=0.85, color=drawing.INK, linewidth=1.2, dashes=(4, 2))
        axes.annotate(
            name,
            (value, 0.85),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-5 if is_left else 5, -14 * max(row - 1, 0)),
            textcoords="offset points",
            horizontalalignment="right" if is_left else "left",
            verticalalignment="top",
        )
    axes.set_ymargin(0.25)
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(loc="upper left", ncols=2, borderaxespad=0, handlelength=1.2)
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("comparisons (%)")
    words = "; ".join(f"{name} at {value:.3f}" for value, name in known)
    alt = (
        f"{len(mated):,} mated similarities with median {np.median(mated):.2f}, {len(nonmated):,}"
        f" nonmated ones with median {np.median(nonmated):.2f}. Thresholds: {words or 'none'}."
    )
    return Figure(to_svg(canvas), alt)


def _shares(sample: Floats, edges: Floats) -> NDArray[np.float64]:
    """Return the percentage of a sample in each bin."""
    return np.asarray(100 * np.histogram(sample, edges)[0] / sample.size, dtype=np.float64)


def _decimals(values: Floats | Sequence[float]) -> int:
    """Return how many decimals tell values apart: none beyond 2, as in [0, 100]."""
    return 0 if np.nanmax(np.abs(values), initial=0) > 2 else 2


def _similarity_panel(
    image: ImageSimilarities, edges: Floats, tallest: float, digits: int
) -> Figure:
    distance = float(wasserstein_distance(image.mated, image.nonmated))
    canvas = new_canvas(270)
    axes, side = canvas.subplots(1, 2, width_ratios=(3.1, 1))
    axes.set_title(f"{image.name}: distance {distance:.2f}")
    for sample, colour, hatch, name in (
        (image.nonmated, drawing.ORANGE, "////", "nonmated"),
        (image.mated, drawing.BLUE, "", "mated"),
    ):
        shares = _shares(sample, edges)
        axes.stairs(shares, edges, fill=True, facecolor=colour, alpha=0.28)
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=f"{name} ({sample.size:,})")
        if hatch:
            axes.stairs(
                shares, edges, fill=False, hatch=hatch, color=colour, linewidth=0, alpha=0.5
            )
    axes.set_ylim(0, tallest * 1.32)
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(loc="upper left", ncols=2, borderaxespad=0, handlelength=1.2, columnspacing=1.2)
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("comparisons (%)")
    side.axis("off")
    side.imshow(image.face, interpolation="none")
    side.set_title(
        f"label {image.label:.{digits}f}", fontsize=11, fontweight="normal", loc="center"
    )
    alt = (
        f"{image.name}: {image.mated.size:,} mated similarities around {image.mated.mean():.2f} "
        f"and {image.nonmated.size:,} nonmated around {image.nonmated.mean():.2f}; their "
        f"Wasserstein distance is {distance:.2f}, the pseudo-label {image.label:.{digits}f}. "
        "The face is shown beside."
    )
    return Figure(to_svg(canvas), alt)


def face_strip(
    faces: Faces, values: Floats, captions: Sequence[str], caption: str = ""
) -> FaceStrip:
    """Return the faces from the lowest to the highest value.

    Args:
        faces: N images.
        values: (N,) such as pseudo-labels or qualities, written below each face; NaN comes first,
            as a dash.
        captions: N short texts for the second line, such as the identity; may be empty.
        caption: The line below the strip.

    Raises:
        ValueError: The three do not have the same length.
    """
    if not len(faces) == len(values) == len(captions):
        raise ValueError(
            "expected as many faces as values and captions, "
            f"got {len(faces)}, {len(values)} and {len(captions)}"
        )
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
    digits = _decimals(values)
    words = ["–" if np.isnan(value) else f"{value:.{digits}f}" for value in values]
    tiles = tuple(FaceTile(to_png(faces[i]), words[i], captions[i]) for i in order)
    return FaceStrip(tiles, caption)


@theme()
def scatter_severity(
    severity: Floats, values: Floats, kinds: Sequence[str], value_name: str
) -> Figure:
    """Return one small panel per kind of degradation: the value over the known severity.

    Args:
        severity: (N,) known severities in [0, 1].
        values: (N,) pseudo-labels or qualities; NaN values are left out.
        kinds: N names of the degradation.
        value_name: Name of the vertical axis.

    Raises:
        ValueError: The three do not have the same length, or no value is a number.
    """
    if not severity.shape == values.shape == (len(kinds),):
        raise ValueError(
            f"expected three of equal length, got {severity.shape}, {values.shape}, {len(kinds)}"
        )
    known = np.isfinite(values)
    names = np.asarray(kinds, dtype=np.str_)
    shown = sorted(set(names[known].tolist()))
    if not shown:
        raise ValueError(f"expected at least one value that is a number, got {len(values)} without")
    num_columns = min(len(shown), min((3, 4), key=lambda columns: -len(shown) % columns))
    num_rows = -(-len(shown) // num_columns)
    canvas = new_canvas(60 + 120 * num_rows)
    panels = canvas.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    correlations = []
    for axes, kind in zip(panels.flat, shown, strict=False):
        chosen = known & (names == kind)
        correlation = _rank_correlation(severity[chosen], values[chosen])
        correlations.append(f"{kind} {correlation}")
        axes.scatter(
            severity[chosen],
            values[chosen],
            s=9,
            color=drawing.BLUE,
            alpha=0.45,
            linewidths=0,
            rasterized=int(known.sum()) > _MAX_VECTOR_POINTS,
        )
        axes.set_title(kind, fontsize=11, fontweight="normal", pad=4)
        axes.text(0.04, 0.05, correlation, color=drawing.MUTED, transform=axes.transAxes)
    for index in range(len(shown), panels.size):
        panels.flat[index].axis("off")
        panels.flat[index - num_columns].tick_params(labelbottom=True)
    panels.flat[0].set(xlim=(-0.04, 1.04), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    title = f"{value_name[:1].upper()}{value_name[1:]} against known severity"
    canvas.suptitle(title, fontsize=12, fontweight="bold", x=0.01, horizontalalignment="left")
    canvas.supxlabel("known severity", color=drawing.MUTED, fontsize=11)
    canvas.supylabel(value_name, color=drawing.MUTED, fontsize=11)
    alt = (
        f"{title}, {int(known.sum()):,} images, one panel per "
        f"degradation, with Spearman's rank correlation: {'; '.join(correlations)}."
    )
    return Figure(to_svg(canvas), alt)


def _rank_correlation(severity: Floats, values: Floats) -> str:
    correlation = rank_correlation(severity, values)
    return "–" if np.isnan(correlation) else f"{correlation:+.2f}".replace("-", "−")
