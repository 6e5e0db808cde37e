"""Faces drawn by the program: portraits of people who do not exist, without a model or a download.

`draw_face(seed, identity, index)` gives the same picture on every machine, up to a grey level here
and there where libraries round differently; it uses no font, no file and no global state.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import ImageChops

from sdd_ray.synthetic.canvas import CROP_PX, OVERSAMPLING, Canvas, Pose
from sdd_ray.synthetic.features import (
    draw_beard,
    draw_brows,
    draw_eyes,
    draw_glasses,
    draw_marks,
    draw_mouth,
    draw_nose,
)
from sdd_ray.synthetic.head import colours_of, draw_background, draw_body, draw_hair, draw_skull
from sdd_ray.synthetic.light import lit
from sdd_ray.synthetic.people import GRAIN, draw_look, draw_person, keyed_generator

_GRAIN_SIGMA = 1.5
_ANY = [0] + [255] * 255


def draw_face(seed: int, identity: int, index: int) -> NDArray[np.uint8]:
    """Return one picture of a drawn person, aligned as face recognisers expect it.

    Pictures of one identity share the person and differ in expression, a small turn of the head,
    light, colour balance, clothing and background, so that no single colour gives a person away.

    Args:
        seed: Chooses the world of people; 0 or more.
        identity: The person; 0 or more.
        index: The picture of the person; 0 or more.

    Returns:
        (112, 112, 3) RGB; the eyes lie about (38, 52) and (74, 52), the mouth about (56, 92).

    Example:
        >>> draw_face(0, 1, 2).shape
        (112, 112, 3)
    """
    person, look = draw_person(seed, identity), draw_look(seed, identity, index)
    pose = Pose(look.yaw, look.pitch, look.roll, look.shift_x, look.shift_y, look.scale)
    colours = colours_of(person)
    background = draw_background(look)
    canvas = Canvas(background.copy(), pose)
    draw_body(canvas, person, look, colours)
    draw_skull(canvas, person, colours)
    draw_marks(canvas, person, colours, seed, identity)
    draw_beard(canvas, person, colours)
    draw_nose(canvas, person, colours)
    draw_mouth(canvas, person, look, colours)
    draw_eyes(canvas, person, look, colours)
    draw_brows(canvas, person, look, colours)
    draw_hair(canvas, person, look, colours)
    draw_glasses(canvas, person, look)
    albedo: NDArray[np.float32] = np.asarray(canvas.image.reduce(OVERSAMPLING), dtype=np.float32)
    drawn_over = ImageChops.difference(canvas.image, background).convert("L").point(_ANY)
    covered: NDArray[np.float32] = np.asarray(drawn_over.reduce(OVERSAMPLING), dtype=np.float32)
    picture = lit(albedo, covered / np.float32(255), person, look, pose)
    # Of uniform numbers, four give a bell curve close enough for grain.
    uniform = keyed_generator(seed, identity, index, GRAIN).random(
        (4, CROP_PX, CROP_PX, 3), np.float32
    )
    grain = (uniform.sum(axis=0) - 2) * np.float32(np.sqrt(3) * _GRAIN_SIGMA)
    face: NDArray[np.uint8] = np.rint(np.clip(picture + grain, 0, 255)).astype(np.uint8)
    return face
