"""Who a drawn person is, and how one picture of them differs from the next.

A `Person` holds what stays the same in all pictures of an identity: proportions, colours, hair,
marks. A `Look` holds what changes from picture to picture: expression, small pose, light, clothing,
background. Both are drawn from named generators, so that picture (seed, identity, index) is the
same wherever and in whatever order it is drawn. Only `Generator.random` is used: of all numpy's
draws it is the one least likely to change between versions.

Coordinates are crop pixels of a 112 x 112 picture, measured from the point (56, 72): x to the
right, y downwards. Lengths are in the same pixels, angles in radians, everything else is a share in
[0, 1] unless its comment says otherwise.
"""

from dataclasses import dataclass, fields

import numpy as np

# What a generator is used for; the last part of its key, so that no two draws share a stream.
PERSON, LOOK, MARKS, GRAIN, DAMAGE = range(5)


def keyed_generator(seed: int, identity: int, index: int, purpose: int) -> np.random.Generator:
    """Return the generator of one purpose for one picture; the key decides all that it draws.

    Example:
        >>> keyed_generator(0, 7, 3, LOOK).random() == keyed_generator(0, 7, 3, LOOK).random()
        True
    """
    return np.random.default_rng([seed, identity, index, purpose])


@dataclass(frozen=True)
class Person:
    """What all pictures of one identity share. Ranges are in `PERSON_RANGES`."""

    face_width: float  # half the width at the cheekbones
    forehead_width: float  # of face_width
    jaw_width: float  # of face_width
    chin_width: float  # of face_width
    chin_y: float
    hairline_y: float
    eye_spacing: float  # half the distance between the pupils
    eye_y: float
    eye_width: float  # half
    eye_height: float  # half
    eye_tilt: float  # rise of the outer corner, of the width
    iris_radius: float
    lid_fold: float
    brow_height: float  # above the eye
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    brow_length: float
    nose_tip_y: float
    nose_width: float  # half
    nose_bridge: float  # half
    nose_relief: float
    mouth_y: float
    mouth_width: float  # half
    upper_lip: float
    lower_lip: float
    cupid_bow: float
    ear_height: float  # half
    ear_width: float
    cheekbones: float
    skin_tone: float  # 0 is the lightest
    skin_warmth: float
    hair_style: float
    hair_tone: float
    hair_volume: float  # height above the skull
    hair_parting: float  # -1 to 1, from left to right
    hair_curl: float
    iris_tone: float
    lip_tone: float
    age: float
    build: float  # above one half: heavier brow and jaw, perhaps a beard
    beard_style: float
    glasses_style: float
    freckles: float
    mole_x: float
    mole_y: float


@dataclass(frozen=True)
class Look:
    """What changes between two pictures of one identity. Ranges are in `LOOK_RANGES`."""

    smile: float  # -1 is a sad mouth
    mouth_open: float
    brow_raise: float  # -1 to 1
    gaze_x: float  # -1 to 1
    gaze_y: float  # -1 to 1
    eye_open: float
    yaw: float
    pitch: float
    roll: float
    shift_x: float
    shift_y: float
    scale: float
    light_x: float  # -1 is from the left
    light_y: float  # -1 is from above
    light_strength: float
    temperature: float  # -1 is cold, 1 is warm
    tint: float  # -1 is green, 1 is magenta
    saturation: float
    exposure: float
    contrast: float
    background_tone: float
    background_light: float
    background_kind: float
    clothing_tone: float
    clothing_light: float
    clothing_kind: float
    hair_stray: float
    wears_glasses: float


PERSON_RANGES: dict[str, tuple[float, float]] = {
    "face_width": (36.0, 43.0),
    "forehead_width": (0.86, 1.0),
    "jaw_width": (0.68, 0.92),
    "chin_width": (0.2, 0.46),
    "chin_y": (31.0, 40.0),
    "hairline_y": (-60.0, -46.0),
    "eye_spacing": (16.0, 19.4),
    "eye_y": (-22.0, -18.0),
    "eye_width": (6.0, 8.6),
    "eye_height": (2.3, 4.3),
    "eye_tilt": (-0.16, 0.22),
    "iris_radius": (2.9, 3.9),
    "lid_fold": (0.0, 1.0),
    "brow_height": (6.8, 11.5),
    "brow_thickness": (1.2, 3.6),
    "brow_arch": (-0.4, 3.2),
    "brow_tilt": (-0.16, 0.2),
    "brow_length": (8.0, 11.5),
    "nose_tip_y": (-2.5, 5.0),
    "nose_width": (4.8, 9.2),
    "nose_bridge": (1.8, 4.0),
    "nose_relief": (0.5, 1.3),
    "mouth_y": (18.0, 22.5),
    "mouth_width": (11.0, 17.0),
    "upper_lip": (1.4, 4.2),
    "lower_lip": (2.0, 5.4),
    "cupid_bow": (0.0, 1.6),
    "ear_height": (7.0, 12.0),
    "ear_width": (3.0, 7.5),
    "cheekbones": (0.0, 1.0),
    "skin_tone": (0.0, 1.0),
    "skin_warmth": (0.0, 1.0),
    "hair_style": (0.0, 1.0),
    "hair_tone": (0.0, 1.0),
    "hair_volume": (2.0, 11.0),
    "hair_parting": (-1.0, 1.0),
    "hair_curl": (0.0, 1.0),
    "iris_tone": (0.0, 1.0),
    "lip_tone": (0.0, 1.0),
    "age": (0.0, 1.0),
    "build": (0.0, 1.0),
    "beard_style": (0.0, 1.0),
    "glasses_style": (0.0, 1.0),
    "freckles": (0.0, 1.0),
    "mole_x": (-28.0, 28.0),
    "mole_y": (-40.0, 30.0),
}

LOOK_RANGES: dict[str, tuple[float, float]] = {
    "smile": (-0.35, 1.0),
    "mouth_open": (-0.8, 1.0),
    "brow_raise": (-1.0, 1.0),
    "gaze_x": (-1.0, 1.0),
    "gaze_y": (-0.7, 0.7),
    "eye_open": (0.72, 1.1),
    "yaw": (-0.26, 0.26),
    "pitch": (-0.14, 0.14),
    "roll": (-0.07, 0.07),
    "shift_x": (-1.6, 1.6),
    "shift_y": (-1.6, 1.6),
    "scale": (0.96, 1.04),
    "light_x": (-1.0, 1.0),
    "light_y": (-1.0, 0.1),
    "light_strength": (0.25, 0.85),
    "temperature": (-1.0, 1.0),
    "tint": (-1.0, 1.0),
    "saturation": (0.55, 1.25),
    "exposure": (0.82, 1.16),
    "contrast": (0.85, 1.12),
    "background_tone": (0.0, 1.0),
    "background_light": (0.15, 0.95),
    "background_kind": (0.0, 1.0),
    "clothing_tone": (0.0, 1.0),
    "clothing_light": (0.1, 0.9),
    "clothing_kind": (0.0, 1.0),
    "hair_stray": (0.0, 1.0),
    "wears_glasses": (0.0, 1.0),
}


def draw_person(seed: int, identity: int) -> Person:
    """Return the person behind an identity number; every range is drawn evenly.

    Example:
        >>> draw_person(0, 5) == draw_person(0, 5), draw_person(0, 5) == draw_person(0, 6)
        (True, False)
    """
    return Person(**_evenly(PERSON_RANGES, keyed_generator(seed, identity, 0, PERSON)))


def draw_look(seed: int, identity: int, index: int) -> Look:
    """Return how the person of `identity` looks in picture `index`; every range is drawn evenly."""
    return Look(**_evenly(LOOK_RANGES, keyed_generator(seed, identity, index, LOOK)))


def _evenly(
    ranges: dict[str, tuple[float, float]], generator: np.random.Generator
) -> dict[str, float]:
    """Return one value for each named range, in the order of the table."""
    shares = generator.random(len(ranges))
    return {
        name: float(low + share * (high - low))
        for (name, (low, high)), share in zip(ranges.items(), shares, strict=True)
    }


def _check_tables() -> None:
    """Stop the import if a field has no range, or a range no field."""
    for described, ranges in ((Person, PERSON_RANGES), (Look, LOOK_RANGES)):
        if [field.name for field in fields(described)] != list(ranges):
            raise TypeError(f"expected one range for each field of {described.__name__}, in order")


_check_tables()
