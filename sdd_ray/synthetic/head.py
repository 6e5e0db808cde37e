"""The head and what surrounds it: background, clothing, neck, ears, outline, hair.

Points are in face coordinates, see `people`.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sdd_ray.synthetic.canvas import (
    CROP_PX,
    OVERSAMPLING,
    Canvas,
    Colour,
    Points,
    curve,
    hue,
    mirrored,
    mix,
    oval,
    ramp,
)
from sdd_ray.synthetic.people import Look, Person

SKULL_TOP = -66.0
OUTLINE_DEPTH = 4.0
BACK_DEPTH = -6.0

_SKIN: tuple[Colour, ...] = (
    (240, 208, 188),
    (230, 188, 160),
    (218, 168, 130),
    (180, 126, 88),
    (134, 88, 60),
    (90, 58, 42),
)
_HAIR: tuple[Colour, ...] = (
    (26, 22, 24),
    (50, 34, 26),
    (92, 60, 38),
    (124, 62, 36),
    (168, 84, 40),
    (160, 122, 78),
    (216, 182, 122),
)
_STYLES = (
    "shaved",
    "short",
    "swept",
    "fringe",
    "straight",
    "wavy",
    "curly",
    "tied",
    "receding",
    "bob",
    "scarf",
)


@dataclass(frozen=True)
class Colours:
    """The colours of one person in one picture."""

    skin: Colour
    shade: Colour
    hair: Colour


def colours_of(person: Person) -> Colours:
    """Return the person's own colours, before any light falls on them."""
    warm = mix((255, 190, 190), (240, 205, 140), person.skin_warmth)
    skin = ramp(_SKIN, person.skin_tone)
    skin = mix(skin, mix(skin, warm, 0.5), 0.35 * (1 - person.skin_tone))
    hair = ramp(_HAIR, person.hair_tone * (1 - 0.7 * person.skin_tone))
    grey = max(0.0, person.age - 0.7) / 0.3
    return Colours(
        skin=skin,
        shade=mix(skin, (92, 36, 30), 0.42),
        hair=mix(hair, (200, 200, 204), 0.85 * grey),
    )


def hair_style_of(person: Person) -> str:
    """Return the name of the person's hair style."""
    return _STYLES[min(int(person.hair_style * len(_STYLES)), len(_STYLES) - 1)]


def draw_background(look: Look) -> Image.Image:
    """Return the enlarged picture behind a head: a wall with a gradient, perhaps with shapes."""
    size = CROP_PX * OVERSAMPLING
    purity = 0.45 * look.background_kind
    bright = hue(look.background_tone, look.background_light, purity)
    dark = hue((look.background_tone + 0.08) % 1, 0.55 * look.background_light, purity)
    corners = np.array([[dark, bright], [bright, mix(bright, dark, 0.5)]], dtype=np.uint8)
    image = Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image, "RGBA")
    other = hue((look.background_tone + 0.4) % 1, 0.9 * look.background_light, purity)
    if look.background_kind > 0.75:
        step = round(30 + 40 * look.background_tone)
        for start in range(-step, size, 2 * step):
            draw.rectangle((start, 0, start + step, size), fill=(*other, 120))
    elif look.background_kind > 0.45:
        for turn in range(5):
            x = (look.background_tone * 977 + turn * 131) % size
            y = (look.background_light * 613 + turn * 89) % size
            radius = 20 + 40 * ((look.background_kind * 17 + turn * 0.37) % 1)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*other, 90))
    return image


def draw_body(canvas: Canvas, person: Person, look: Look, colours: Colours) -> None:
    """Draw clothing, neck and, for long styles, the hair behind them."""
    style = hair_style_of(person)
    cloth = hue(look.clothing_tone, look.clothing_light, 0.7)
    if style in ("straight", "wavy", "bob", "scarf"):
        fabric = hue(look.clothing_tone + 0.3, 0.25 + 0.7 * look.clothing_light, 0.5)
        colour = fabric if style == "scarf" else mix(colours.hair, (0, 0, 0), 0.3)
        canvas.fill(_back_hair(person, style), colour, depth=BACK_DEPTH)
    neck = 0.62 * person.face_width
    canvas.fill(
        np.array([(-neck, 5), (neck, 5), (neck + 2, 60), (-neck - 2, 60)]),
        mix(colours.skin, colours.shade, 0.75),
        depth=0.0,
    )
    shoulders = curve([(-80, 60), (-66, 41), (-neck - 2, 31), (-neck + 6, 34)])
    collar = curve([(neck - 6, 34), (neck + 2, 31), (66, 41), (80, 60)])
    canvas.fill(np.concatenate([shoulders, [(0, 46.0)], collar]), cloth, depth=0.0)
    if look.clothing_kind > 0.5:
        light = mix(cloth, (255, 255, 255), 0.6)
        canvas.stroke(
            np.concatenate([shoulders[-4:], [(0, 46.0)], collar[:4]]), light, 2.0, depth=0.0
        )


def draw_skull(canvas: Canvas, person: Person, colours: Colours) -> None:
    """Draw ears and the outline of the face, without its features."""
    if hair_style_of(person) != "scarf":
        for side in (-1, 1):
            x, y = side * (person.face_width - 1), -13.0
            ear = oval(x + side * 0.35 * person.ear_width, y, person.ear_width, person.ear_height)
            canvas.fill(ear, mix(colours.skin, colours.shade, 0.25), depth=OUTLINE_DEPTH)
            inner = oval(
                x + side * 0.6 * person.ear_width,
                y,
                0.5 * person.ear_width,
                0.66 * person.ear_height,
            )
            canvas.stroke(inner, colours.shade, 0.8, alpha=0.7, depth=OUTLINE_DEPTH)
    outline = face_outline(person)
    depth = outline_depth(outline, person)
    canvas.fill(outline, colours.skin, depth=depth)
    canvas.stroke(outline, colours.shade, 0.6, alpha=0.5, depth=depth)


def face_outline(person: Person) -> Points:
    """Return the closed outline of the bare head."""
    wide = person.face_width
    brow = wide * person.forehead_width
    jaw, chin = wide * person.jaw_width, wide * person.chin_width
    low = person.chin_y
    return curve(
        mirrored(
            [
                (0, SKULL_TOP),
                (0.62 * brow, SKULL_TOP + 7),
                (0.94 * brow, -45),
                (brow, -30),
                (wide, -9),
                (0.55 * wide + 0.45 * jaw, 6),
                (0.12 * wide + 0.88 * jaw, 17),
                (0.72 * jaw + 0.28 * chin, 0.5 * (low + 18)),
                (chin, low - 1.5),
                (0, low),
            ]
        ),
        closed=True,
    )


def outline_depth(outline: Points, person: Person) -> Points:
    """Return (K,) depths of the outline: the chin lies far in front of the ears."""
    lower = np.clip((outline[:, 1] - 5) / (person.chin_y - 5), 0, 1)
    return OUTLINE_DEPTH + 24 * lower**2


def draw_hair(canvas: Canvas, person: Person, look: Look, colours: Colours) -> None:
    """Draw the hair, or the cloth, that frames the face."""
    style = hair_style_of(person)
    if style == "scarf":
        _draw_scarf(canvas, person, look)
        return
    crown = _crown(person, style)
    hairline = _hairline(person, style)
    shape = np.concatenate([crown, hairline])
    depth = np.concatenate([np.full(len(crown), 2.0), np.full(len(hairline), 14.0)])
    if style == "shaved":
        canvas.fill(shape, colours.hair, alpha=0.5, depth=depth)
        return
    mask = canvas.mask(shape, depth)
    layer = canvas.layer()
    layer.fill(shape, colours.hair, depth=depth)
    _draw_strands(layer, person, look, colours.hair)
    canvas.paste(layer, mask)


def _draw_strands(layer: Canvas, person: Person, look: Look, colour: Colour) -> None:
    """Draw lines that run from the parting outwards, lighter and darker than the hair."""
    start_x = 26 * person.hair_parting
    light = mix(colour, (255, 244, 220), 0.28)
    dark = mix(colour, (0, 0, 0), 0.4)
    for number, end_x in enumerate(np.linspace(-58, 58, 20)):
        wave = (1 + 7 * person.hair_curl) * np.sin(number * 2.4 + 3 * look.hair_stray)
        line = curve(
            [
                (start_x + 0.1 * end_x, SKULL_TOP - person.hair_volume),
                (start_x + 0.55 * (end_x - start_x) + wave, -58),
                (0.95 * end_x - 0.6 * wave, -36),
                (1.02 * end_x + wave, 0),
                (1.0 * end_x - wave, 44),
            ]
        )
        layer.stroke(line, light if number % 2 else dark, 1.1, alpha=0.45, depth=6.0)


def _crown(person: Person, style: str) -> Points:
    """Return the outer edge of the hair, from the left sideburn over the top to the right one."""
    bulge = {"shaved": 0.0, "receding": 0.8, "tied": 1.5, "curly": 7.0 + person.hair_volume}.get(
        style, person.hair_volume
    )
    brow = person.face_width * person.forehead_width
    long = style in ("straight", "wavy", "bob")
    end = {"straight": 44.0, "wavy": 44.0, "bob": 16.0, "curly": 2.0, "fringe": -4.0}.get(
        style, -17.0
    )
    side = 0.45 * bulge + (3.0 if long else 0.0)
    right = [
        (0.0, SKULL_TOP - bulge),
        (0.55 * brow, SKULL_TOP + 5 - bulge),
        (0.97 * brow + 0.6 * bulge, -45 - 0.5 * bulge),
        (1.02 * brow + side, -28.0),
        (person.face_width + side, 0.5 * (end - 28)),
        (person.face_width + 0.8 * side, end),
    ]
    left = [(-x, y) for x, y in reversed(right[1:])]
    edge = curve(left + right)
    if style in ("curly", "wavy"):
        ripple = (1.2 + 1.6 * person.hair_curl) * np.sin(np.arange(len(edge)) * 1.3)
        edge = edge * (1 + ripple / 60)[:, None]
    return edge


def _hairline(person: Person, style: str) -> Points:
    """Return the inner edge of the hair, from the right sideburn over the forehead to the left."""
    brow = person.face_width * person.forehead_width
    top = person.hairline_y
    lean = 7 * person.hair_parting
    if style == "receding":
        right = [(0.99, -16.0), (0.9, -34.0), (0.86, -51.0), (0.6, -60.0), (0.25, SKULL_TOP)]
        left = [(-x, y) for x, y in reversed(right)]
    elif style == "fringe":
        right = [(0.98, -6.0), (0.88, -22.0), (0.8, -36.0), (0.4, -35.0)]
        left = [(-0.4, -35.5), (-0.8, -36.0), (-0.88, -22.0), (-0.98, -6.0)]
    elif style in ("straight", "wavy", "bob"):
        low = 16.0 if style == "bob" else 44.0
        parting = 0.45 * person.hair_parting
        right = [
            (0.99, low),
            (0.9, 0.0),
            (0.86, -24.0),
            (0.5 + 0.4 * parting, -46.0),
            (parting, top - 2),
        ]
        left = [(-0.5 + 0.4 * parting, -46.0), (-0.86, -24.0), (-0.9, 0.0), (-0.99, low)]
    elif style == "swept":
        right = [(0.99, -15.0), (0.9, -36.0), (0.6, top + 4 + lean), (0.2, top + 2 + 0.6 * lean)]
        left = [(-0.2, top + 2 - 0.6 * lean), (-0.6, top + 4 - lean), (-0.9, -36.0), (-0.99, -15.0)]
    else:
        right = [(0.99, -15.0), (0.92, -34.0), (0.7, top + 5), (0.3, top)]
        left = [(-0.3, top), (-0.7, top + 5), (-0.92, -34.0), (-0.99, -15.0)]
    return curve([(x * brow, y) for x, y in right + left])


def _back_hair(person: Person, style: str) -> Points:
    """Return the outline of the hair, or cloth, that hangs behind the neck."""
    wide = person.face_width + 0.5 * person.hair_volume + 3
    low = 20.0 if style == "bob" else 60.0
    flare = 1.12 if style in ("wavy", "scarf") else 1.0
    return curve(
        mirrored(
            [
                (0, SKULL_TOP),
                (wide, -35),
                (wide, -5),
                (flare * wide, 0.6 * low),
                (0.9 * wide, low),
                (0, low),
            ]
        ),
        closed=True,
    )


def _draw_scarf(canvas: Canvas, person: Person, look: Look) -> None:
    """Draw a headscarf: a band between the head's outline and an oval around the face."""
    fabric = hue(look.clothing_tone + 0.3, 0.25 + 0.7 * look.clothing_light, 0.5)
    wide = person.face_width + 2 + 0.4 * person.hair_volume
    outer = curve(
        [
            (-wide, 60),
            (-wide, -10),
            (-0.9 * wide, -48),
            (0, SKULL_TOP - 4),
            (0.9 * wide, -48),
            (wide, -10),
            (wide, 60),
        ]
    )
    brow = person.face_width * person.forehead_width
    opening = curve(
        [
            (0.2 * brow, person.chin_y - 1),
            (0.78 * person.face_width, 18),
            (0.9 * person.face_width, -10),
            (0.82 * brow, -36),
            (0, person.hairline_y + 4),
            (-0.82 * brow, -36),
            (-0.9 * person.face_width, -10),
            (-0.78 * person.face_width, 18),
            (-0.2 * brow, person.chin_y - 1),
        ]
    )
    depth = np.concatenate([np.full(len(outer), 2.0), np.full(len(opening), 12.0)])
    # The two edges meet below the chin, where the cloth is closed.
    canvas.fill(
        np.concatenate([outer, [(0.2 * brow, 60.0)], opening, [(-0.2 * brow, 60.0)]]),
        fabric,
        depth=np.concatenate([depth[: len(outer)], [2.0], depth[len(outer) :], [2.0]]),
    )
    canvas.stroke(opening, mix(fabric, (0, 0, 0), 0.35), 1.2, alpha=0.8, depth=12.0)
