"""A picture to draw a posed face on: curves, projection of face points, colours.

Everything is drawn three times too large and reduced at the end, which gives soft edges. No font
and no random number is used here; two versions of Pillow may differ at the edge of a polygon.

Shapes: K points, each (x, y) in face coordinates (see `people`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CROP_PX = 112
OVERSAMPLING = 3
CENTRE = (56.0, 72.0)
# The landmarks that a face detector aligns on lie about this far in front of the turning axis, so a
# turned head leaves eyes and mouth in place and moves its outline the other way.
LANDMARK_DEPTH = 34.0

_TURN = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_STEP = np.linspace(0, 1, 6, endpoint=False)
# Weights of four neighbouring knots for six points between the middle two, (6, 4): the uniform
# Catmull-Rom spline.
_SPLINE = (
    np.stack([np.ones(6), _STEP, _STEP**2, _STEP**3], axis=1)
    @ np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    / 2
)

Colour = tuple[int, int, int]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Pose:
    """How a head is turned and where the crop cut it out; angles in radians, shifts in pixels."""

    yaw: float
    pitch: float
    roll: float
    shift_x: float
    shift_y: float
    scale: float

    def turn(self, points: Points, depth: NDArray[np.float64] | float) -> Points:
        """Return (K, 2) crop pixels of face points before the roll in the picture plane."""
        turned: Points = points * (np.cos(self.yaw) * self.scale, np.cos(self.pitch) * self.scale)
        turned += (CENTRE[0] + self.shift_x, CENTRE[1] + self.shift_y)
        ahead = (np.asarray(depth) - LANDMARK_DEPTH) * self.scale
        turned[:, 0] += ahead * np.sin(self.yaw)
        turned[:, 1] += ahead * np.sin(self.pitch)
        return turned

    def place(self, points: Points, depth: NDArray[np.float64] | float) -> Points:
        """Return (K, 2) crop pixels of face points."""
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        turned = self.turn(points, depth) - CENTRE
        placed: Points = turned @ np.array([[cosine, sine], [-sine, cosine]]) + CENTRE
        return placed


def surface_depth(points: Points) -> NDArray[np.float64]:
    """Return (K,) how far the face's surface, half an egg, lies in front of the turning axis."""
    x, y = points[:, 0] / 48, (points[:, 1] + 8) / 76
    return 42 * np.sqrt(np.maximum(1 - x * x - y * y, 0))


class Canvas:
    """An enlarged picture with a face's pose; points are given in face coordinates.

    Args:
        background: RGB picture, enlarged; drawn over.
        pose: Where face points come to lie.
    """

    def __init__(self, background: Image.Image, pose: Pose) -> None:
        self.image = background
        self.pose = pose
        self._draw = ImageDraw.Draw(background, "RGBA")

    def fill(
        self,
        points: Points,
        colour: Colour,
        alpha: float = 1.0,
        depth: NDArray[np.float64] | float | None = None,
    ) -> None:
        """Fill a polygon; without a depth its points lie on the face's surface."""
        self._draw.polygon(self._flat(points, depth), fill=(*colour, round(255 * alpha)))

    def stroke(
        self,
        points: Points,
        colour: Colour,
        width_px: float,
        alpha: float = 1.0,
        depth: NDArray[np.float64] | float | None = None,
    ) -> None:
        """Draw a line of a width in crop pixels."""
        width = max(1, round(width_px * OVERSAMPLING))
        self._draw.line(
            self._flat(points, depth),
            fill=(*colour, round(255 * alpha)),
            width=width,
            joint="curve",
        )

    def mask(self, points: Points, depth: NDArray[np.float64] | float | None = None) -> Image.Image:
        """Return the enlarged picture of one polygon, white on black."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self._flat(points, depth), fill=255)
        return mask

    def layer(self) -> "Canvas":
        """Return a copy to draw on; `paste` brings a part of it back."""
        return Canvas(self.image.copy(), self.pose)

    def paste(self, layer: "Canvas", mask: Image.Image) -> None:
        """Take over from `layer` what lies under the white of `mask`."""
        box = mask.getbbox()
        if box is not None:
            self.image.paste(layer.image.crop(box), box[:2], mask.crop(box))

    def _flat(self, points: Points, depth: NDArray[np.float64] | float | None) -> list[float]:
        placed = self.pose.place(points, surface_depth(points) if depth is None else depth)
        flat: list[float] = (placed * OVERSAMPLING).ravel().tolist()
        return flat


def curve(points: Points | list[tuple[float, float]], *, closed: bool = False) -> Points:
    """Return a smooth line (Catmull-Rom, six steps a piece) through the points, (6 K', 2)."""
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    quads = np.concatenate([knots[:-3], knots[1:-2], knots[2:-1], knots[3:]], axis=1)
    smooth: Points = (_SPLINE @ quads.reshape(-1, 4, 2)).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, knots[-2:-1]])


def oval(x: float, y: float, half_width: float, half_height: float) -> Points:
    """Return (20, 2) points on an ellipse."""
    points: Points = _CIRCLE * (half_width, half_height) + (x, y)
    return points


def mirrored(right_half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a closed outline from its right half, given from the middle of the top downwards.

    Example:
        >>> mirrored([(0.0, -1.0), (1.0, 0.0), (0.0, 1.0)])
        [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    """
    return right_half + [(-x, y) for x, y in reversed(right_half) if x != 0]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour `share` of the way from the first to the second.

    Example:
        >>> mix((0, 0, 0), (200, 100, 50), 0.5)
        (100, 50, 25)
    """
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ramp(stops: tuple[Colour, ...], share: float) -> Colour:
    """Return the colour at `share` in [0, 1] of a row of evenly spaced colours."""
    position = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    start = min(int(position), len(stops) - 2)
    return mix(stops[start], stops[start + 1], position - start)


def hue(tone: float, light: float, purity: float) -> Colour:
    """Return a colour of the colour circle; tone, light and purity in [0, 1]."""
    wheel = np.clip(np.abs((tone * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = np.rint(255 * light * (1 - purity + purity * wheel)).astype(int).tolist()
    return red, green, blue
