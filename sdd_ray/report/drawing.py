"""What every figure shares: colours, type, and the way from matplotlib to SVG that fits a page.

A figure is drawn with matplotlib's objects and the SVG backend; pyplot and its global list of
figures are not used, and the caller's matplotlib settings neither matter nor change. Text stays
text. Colours are written as CSS variables with a fallback, so that the page can turn them for dark
screens and for paper, while the file alone still shows the light ones. Equal input gives equal
bytes: no date, no random identifiers.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from PIL import Image

# The roles of colours: CSS variable -> (on light, on dark). The hues of the series are those of
# Okabe and Ito, distinct under all common colour vision deficiencies; the dark variants are lighter
# tints of the same hues. Line dashes and markers tell the series apart once more.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2024", "#eceef1"),
    "muted": ("#5b626b", "#a9b0b9"),
    "line": ("#d9dce1", "#3a4049"),
    "blue": ("#0072b2", "#5cb8f0"),
    "orange": ("#c95a00", "#f2995a"),
    "green": ("#008a65", "#35c79c"),
    "purple": ("#a34c86", "#e29ac9"),
    "grey": ("#7b828b", "#9aa1ab"),
}
INK, MUTED, LINE = (COLOURS[name][0] for name in ("ink", "muted", "line"))
BLUE, ORANGE, GREEN, PURPLE, GREY = (
    COLOURS[name][0] for name in ("blue", "orange", "green", "purple", "grey")
)

WIDTH_PX = 440
_PX_PER_INCH = 72  # the unit of matplotlib's SVG
_RASTER_DPI = 200  # of the parts that are drawn as pixels
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sdd_ray",
    "image.composite_image": False,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.5,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Figure:
    """One figure of a page.

    Attributes:
        content: SVG markup, or the bytes of a PNG file.
        alt: What the figure shows, in words, for those who cannot see it.
        caption: The line below it; may be empty.
    """

    content: str | bytes
    alt: str
    caption: str = ""


@contextmanager
def theme() -> Iterator[None]:
    """Draw with the settings of this module, whatever the caller's are; use as a decorator."""
    with mpl.rc_context(), warnings.catch_warnings():
        # The page's reader brings the fonts: a glyph that is missing here is not missing there.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)  # type: ignore[arg-type]  # its keys are a literal type
        yield


def new_canvas(height_px: int, width_px: int = WIDTH_PX) -> Canvas:
    """Return an empty figure of the given size in CSS pixels, laid out without overlaps."""
    size_in = (width_px / _PX_PER_INCH, height_px / _PX_PER_INCH)
    return Canvas(figsize=size_in, dpi=_RASTER_DPI, layout="constrained")


def new_axes(height_px: int, title: str) -> tuple[Canvas, Axes]:
    """Return a figure with one pair of axes and its title."""
    canvas = new_canvas(height_px)
    axes = canvas.add_subplot()
    axes.set_title(title)
    return canvas, axes


def to_svg(canvas: Canvas) -> str:
    """Return the figure as an `<svg>` element, ready to stand in an HTML page."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    return _with_css_colours(_fit_for_a_page(svg[svg.index("<svg") :].strip()))


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of an (H, W, 3) RGB or (H, W) grey image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_jpeg(pixels: NDArray[np.uint8], side: int = 96) -> bytes:
    """Return the JPEG file of an (H, W, 3) RGB image, no larger than `side`: for many faces."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def _fit_for_a_page(svg: str) -> str:
    """Return the markup without what would leak into the page or is never referred to."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z.]+[a-z0-9]*_\d+"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT_STACK}", svg)
    svg = re.sub(r' (width|height)="([\d.]+)pt"', r' \1="\2"', svg, count=2)
    return svg.replace("<svg ", '<svg style="stroke-linejoin: round" ', 1)


def _with_css_colours(svg: str) -> str:
    variables = {light: f"var(--{name}, {light})" for name, (light, _) in COLOURS.items()}
    return re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})\b",
        lambda found: f"{found[1]}: {variables.get(found[2], found[2])}",
        svg,
    )
