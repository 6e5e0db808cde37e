"""The features of a drawn face: eyes, brows, nose, mouth, beard, marks, glasses.

Points are in face coordinates, see `people`. Every function draws on the canvas it is given.
"""

import numpy as np

from sdd_ray.synthetic.canvas import Canvas, Colour, Points, curve, mix, oval, ramp
from sdd_ray.synthetic.head import Colours, face_outline, outline_depth
from sdd_ray.synthetic.people import MARKS, Look, Person, keyed_generator

_INK: Colour = (34, 22, 22)
_WHITE: Colour = (246, 243, 238)
_IRIS: tuple[Colour, ...] = (
    (52, 32, 22),
    (92, 58, 32),
    (132, 100, 52),
    (88, 118, 76),
    (88, 132, 170),
    (112, 124, 134),
)
_GLASSES_FROM = 0.7
_FRECKLES_FROM = 0.72
_BEARD_FROM = 0.35


def draw_eyes(canvas: Canvas, person: Person, look: Look, colours: Colours) -> None:
    """Draw both eyes: white, iris, pupil, highlight, lids and lashes."""
    for side in (-1, 1):
        upper, lower = _lids(person, look, side)
        almond = np.concatenate([upper, lower[::-1]])
        layer = canvas.layer()
        layer.fill(almond, mix(_WHITE, colours.skin, 0.16))
        x = side * person.eye_spacing + 2.2 * look.gaze_x
        y = person.eye_y - 0.3 + 1.1 * look.gaze_y
        iris = ramp(_IRIS, person.iris_tone * (1 - 0.6 * person.skin_tone))
        radius = person.iris_radius
        layer.fill(oval(x, y, radius, radius), mix(iris, _INK, 0.45))
        layer.fill(oval(x, y + 0.2, 0.78 * radius, 0.78 * radius), iris)
        layer.fill(oval(x, y, 0.45 * radius, 0.45 * radius), _INK)
        layer.fill(oval(x + 1.1, y - 1.2, 0.8, 0.8), (255, 255, 255))
        layer.stroke(upper + np.array([0, 0.7]), _INK, 1.2, alpha=0.35)
        canvas.paste(layer, canvas.mask(almond))
        lashes = mix(_INK, colours.shade, 0.25)
        canvas.stroke(upper, lashes, 1.0 + 0.7 * (1 - person.build))
        canvas.stroke(lower, colours.shade, 0.6, alpha=0.75)
        fold = upper[2:-2] - (0, 1.4 + 1.5 * person.lid_fold)
        canvas.stroke(fold, colours.shade, 0.7, alpha=0.3 + 0.5 * person.lid_fold)
        if person.age > 0.5:
            below = lower[4:-4] + np.array([0, 2.6])
            canvas.stroke(below, colours.shade, 0.7, alpha=0.9 * (person.age - 0.5))


def _lids(person: Person, look: Look, side: int) -> tuple[Points, Points]:
    """Return the edges of the upper and the lower lid, each (25, 2)."""
    along = np.linspace(-1, 1, 25)
    x = side * person.eye_spacing + person.eye_width * along
    arch = (1 - along**2) ** 0.75
    base = person.eye_y + 0.4 - person.eye_tilt * person.eye_width * along * side
    upper = base - person.eye_height * look.eye_open * arch
    lower = base + person.eye_height * (0.62 - 0.16 * max(0.0, look.smile)) * arch
    return np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)


def draw_brows(canvas: Canvas, person: Person, look: Look, colours: Colours) -> None:
    """Draw both eyebrows."""
    colour = mix(colours.hair, mix(_INK, colours.skin, 0.15), 0.5)
    thick = person.brow_thickness * (0.75 + 0.5 * person.build)
    for side in (-1, 1):
        y = person.eye_y - person.brow_height - 1.6 * look.brow_raise
        along = np.array([-1.0, -0.5, 0.1, 0.55, 1.0])
        x = side * (person.eye_spacing + 0.5 + person.brow_length * along)
        rise = person.brow_arch * np.array([0.0, 0.6, 1.0, 0.8, -0.4])
        middle = y - rise - person.brow_tilt * person.brow_length * along
        half = 0.5 * thick * np.array([0.9, 1.1, 1.0, 0.8, 0.25])
        top = curve(np.stack([x, middle - half], axis=1))
        bottom = curve(np.stack([x, middle + half], axis=1))
        canvas.fill(np.concatenate([top, bottom[::-1]]), colour, alpha=0.88)


def draw_nose(canvas: Canvas, person: Person, colours: Colours) -> None:
    """Draw nostrils, wings and the underside; the ridge comes from the light."""
    tip, half = person.nose_tip_y, person.nose_width
    depth = 44.0
    under = curve(
        [(-0.8 * half, tip + 2.6), (0, tip + 5.2), (0.8 * half, tip + 2.6), (0, tip + 1.0)],
        closed=True,
    )
    canvas.fill(under, colours.shade, alpha=0.35, depth=depth)
    for side in (-1, 1):
        nostril = oval(side * 0.48 * half, tip + 3.3, 0.24 * half, 1.1)
        canvas.fill(nostril, mix(colours.shade, _INK, 0.6), alpha=0.85, depth=depth)
        wing = curve(
            [
                (side * 0.72 * half, tip - 3.2),
                (side * half, tip + 0.2),
                (side * 0.95 * half, tip + 2.6),
                (side * 0.66 * half, tip + 3.4),
            ]
        )
        canvas.stroke(wing, colours.shade, 0.9, alpha=0.75, depth=depth - 3)
    canvas.stroke(
        curve([(-0.26 * half, tip + 4.2), (0, tip + 5.0), (0.26 * half, tip + 4.2)]),
        colours.shade,
        0.9,
        alpha=0.7,
        depth=depth,
    )


def draw_mouth(canvas: Canvas, person: Person, look: Look, colours: Colours) -> None:
    """Draw lips, and what an open mouth shows."""
    red = mix((206, 112, 104), (170, 40, 62), person.lip_tone * (1 - 0.6 * person.build))
    lip = mix(
        colours.skin, mix(red, colours.shade, 0.55 * person.skin_tone), 0.5 + 0.3 * person.lip_tone
    )
    half = person.mouth_width * (1 + 0.16 * look.smile)
    y = person.mouth_y + 1.2 * look.smile
    corner = y - 3.4 * look.smile
    gap = 6.5 * max(0.0, look.mouth_open)
    share = np.linspace(-1, 1, 21)
    bend = corner + (y - corner) * (1 - np.abs(share) ** 1.7)
    arch = 1 - share**2
    upper_edge = np.stack([half * share, bend - 0.15 * gap * arch], axis=1)
    lower_edge = np.stack([half * share, bend + 0.85 * gap * arch**0.7], axis=1)
    bow = person.cupid_bow * np.exp(-((share / 0.13) ** 2))
    top = upper_edge - np.stack([0 * share, person.upper_lip * arch**0.6 - bow], axis=1)
    bottom = lower_edge + np.stack([0 * share, person.lower_lip * arch**0.8], axis=1)
    canvas.fill(np.concatenate([top, upper_edge[::-1]]), mix(lip, colours.shade, 0.22))
    canvas.fill(np.concatenate([lower_edge, bottom[::-1]]), lip)
    if gap > 1.5:
        _draw_opening(canvas, upper_edge, lower_edge, gap)
    canvas.stroke(upper_edge, mix(colours.shade, _INK, 0.45), 0.9, alpha=0.85)
    shine = lower_edge[6:-6] + np.array([0, 0.45 * person.lower_lip])
    canvas.stroke(shine, mix(lip, (255, 255, 255), 0.5), 0.7, alpha=0.45)
    if person.age > 0.45 or look.smile > 0.5:
        _draw_laugh_lines(canvas, person, half, corner, colours)


def _draw_opening(canvas: Canvas, upper_edge: Points, lower_edge: Points, gap: float) -> None:
    """Draw the dark of an open mouth, and teeth below the upper lip."""
    canvas.fill(np.concatenate([upper_edge, lower_edge[::-1]]), (74, 24, 28))
    height = np.minimum(lower_edge[:, 1] - upper_edge[:, 1], min(0.6 * gap, 2.8))
    teeth = upper_edge + np.stack([0 * height, height], axis=1)
    canvas.fill(np.concatenate([upper_edge[2:-2], teeth[2:-2][::-1]]), (240, 236, 226))


def _draw_laugh_lines(
    canvas: Canvas, person: Person, half: float, corner: float, colours: Colours
) -> None:
    """Draw the folds from the nose to the corners of the mouth."""
    for side in (-1, 1):
        fold = curve(
            [
                (side * (person.nose_width + 2), person.nose_tip_y + 1),
                (side * (half + 3.5), 0.6 * corner + 0.4 * person.nose_tip_y),
                (side * (half + 5), corner + 2),
            ]
        )
        canvas.stroke(fold, colours.shade, 0.9, alpha=0.25 + 0.4 * person.age)


def draw_beard(canvas: Canvas, person: Person, colours: Colours) -> None:
    """Draw stubble, a moustache, a goatee or a full beard, on those who have one."""
    if person.build < 0.5 or person.beard_style < _BEARD_FROM:
        return
    kind = int((person.beard_style - _BEARD_FROM) / (1 - _BEARD_FROM) * 3.999)
    colour = mix(colours.hair, colours.skin, 0.12)
    wide, jaw, low = person.face_width, person.face_width * person.jaw_width, person.chin_y
    y, half = person.mouth_y, person.mouth_width
    if kind in (0, 3):
        edge = [(1.2 * wide, -4), (1.2 * jaw, 20), (jaw, low + 6), (0.3 * wide, low + 12)]
        inner = [(0.3 * half, y - 7.5), (half + 4, y - 4), (0.86 * wide, -1)]
        right = curve([*edge, (0.0, low + 12)])
        shape = np.concatenate(
            [right, right[::-1] * (-1, 1), curve([(-x, v) for x, v in inner[::-1]] + inner)]
        )
        outline = face_outline(person)
        layer = canvas.layer()
        layer.fill(shape, colour, alpha=0.32 if kind == 0 else 0.86)
        canvas.paste(layer, canvas.mask(outline, outline_depth(outline, person)))
    if kind == 2:
        chin = [(0, y + 5.5), (0.55 * half, y + 6), (0.7 * half, low - 5), (0, low + 1)]
        canvas.fill(
            curve(chin + [(-x, v) for x, v in chin[-2:0:-1]], closed=True), colour, alpha=0.86
        )
    if kind in (1, 2):
        top = max(person.nose_tip_y + 6.0, y - 9.0)
        wide = half + 1.5
        moustache = [(0, top + 1), (0.35 * wide, top), (0.8 * wide, y - 4), (wide, y + 1.5)]
        moustache += [(0.6 * wide, y - 2.2), (0, y - 0.8 * person.upper_lip)]
        canvas.fill(
            curve(moustache + [(-x, v) for x, v in moustache[-2:0:-1]], closed=True),
            colour,
            alpha=0.86,
        )


def draw_marks(canvas: Canvas, person: Person, colours: Colours, seed: int, identity: int) -> None:
    """Draw wrinkles, freckles and moles; they lie where they lie in every picture of a person."""
    marks = keyed_generator(seed, identity, 0, MARKS)
    brown = mix(colours.skin, (104, 56, 34), 0.6)
    if person.freckles > _FRECKLES_FROM:
        count = int(120 * (person.freckles - _FRECKLES_FROM)) + 10
        spots = marks.random((count, 3))
        for across, down, size in spots:
            spot = oval((across - 0.5) * 50, -14 + 20 * down, 0.5 + 0.4 * size, 0.5 + 0.4 * size)
            canvas.fill(spot, brown, alpha=0.55)
    radius = 2.4 * float(marks.random()) - 0.8
    if radius > 0:
        canvas.fill(
            oval(person.mole_x, person.mole_y, radius, radius), mix(brown, _INK, 0.5), alpha=0.9
        )
    if person.age > 0.55:
        for line in range(3):
            y = 0.5 * (person.eye_y - person.brow_height + person.hairline_y) + 3.5 * (line - 1)
            wrinkle = curve([(-17, y + 1.2), (-6, y - 0.4), (6, y - 0.4), (17, y + 1.2)])
            canvas.stroke(wrinkle, colours.shade, 0.7, alpha=1.1 * (person.age - 0.55))


def draw_glasses(canvas: Canvas, person: Person, look: Look) -> None:
    """Draw glasses on those who own a pair, in most of their pictures."""
    if person.glasses_style < _GLASSES_FROM or look.wears_glasses > 0.85:
        return
    kind = (person.glasses_style - _GLASSES_FROM) / (1 - _GLASSES_FROM)
    frame = ramp(((22, 20, 24), (120, 60, 30), (150, 150, 160), (130, 20, 40)), (kind * 3.7) % 1)
    width, height = 10.5 + 2.5 * ((kind * 7.3) % 1), 7.5 + 3 * ((kind * 5.1) % 1)
    power = 2.0 if kind < 0.5 else 4.5
    angle = np.linspace(0, 2 * np.pi, 29)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    unit = np.sign(unit) * np.abs(unit) ** (2 / power)
    thick, depth = 0.9 + 1.3 * ((kind * 3.1) % 1), 44.0
    for side in (-1, 1):
        ring = unit * (width, height) + (side * (person.eye_spacing + 0.6), person.eye_y + 1.2)
        canvas.fill(ring, (225, 235, 245), alpha=0.1, depth=depth)
        canvas.stroke(ring, frame, thick, depth=depth)
        outer = side * (person.eye_spacing + 0.6 + width)
        arm = np.array(
            [(outer, person.eye_y - 2.0), (side * (person.face_width - 1), person.eye_y - 1.0)]
        )
        canvas.stroke(arm, frame, thick, depth=np.array([depth, 6.0]))
    inner = person.eye_spacing + 0.6 - width
    canvas.stroke(
        curve([(-inner, person.eye_y), (0, person.eye_y - 1.6), (inner, person.eye_y)]),
        frame,
        thick,
        depth=depth,
    )
