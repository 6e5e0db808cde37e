"""The light on a drawn face: shape from a height map, light colour, camera, grain.

Shapes: pictures are (112, 112, 3) float32 in [0, 255]; maps are (112, 112) float32.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdd_ray.synthetic.canvas import CENTRE, CROP_PX, Pose, surface_depth
from sdd_ray.synthetic.people import Look, Person

Map = NDArray[np.float32]

# x, y, half-width, half-height, and by how many pixels the face rises there; below zero it sinks.
_Bump = tuple[float, float, float, float, float]


def lit(albedo: Map, body: Map, person: Person, look: Look, pose: Pose) -> Map:
    """Return the picture under the look's light: shaded, tinted, and as its camera records it.

    Args:
        albedo: The picture in its own colours.
        body: How much of each pixel the person covers, in [0, 1]; the rest lies in even light.
        person: Gives the relief of the face.
        look: Gives light and camera.
        pose: Where the relief lies.
    """
    shade, shine = _shading(_relief(person, look, pose), look)
    shade = 1 + body * (_rolled(shade, pose) - 1)
    shine = body * _rolled(shine, pose)
    tint = np.array(
        [
            1 + 0.09 * look.temperature + 0.03 * look.tint,
            1 - 0.05 * look.tint,
            1 - 0.11 * look.temperature + 0.03 * look.tint,
        ],
        dtype=np.float32,
    )
    picture = albedo * (shade[:, :, None] * tint) + (26 * shine)[:, :, None]
    grey = picture @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    picture = grey[:, :, None] + np.float32(look.saturation) * (picture - grey[:, :, None])
    return (picture - 118) * np.float32(look.contrast) + 118 * np.float32(look.exposure)


def _relief(person: Person, look: Look, pose: Pose) -> Map:
    """Return the height of the face above the picture plane, in pixels."""
    rows = np.arange(CROP_PX, dtype=np.float32)
    middle = np.array([CENTRE]) - (56.0 + pose.shift_x, 72.0 + pose.shift_y)
    turned_x = 20 * np.sin(pose.yaw)
    across = ((rows - 56 + middle[0, 0] - turned_x) / (person.face_width + 12)) ** 2
    down = ((rows - 64 + middle[0, 1]) / 72) ** 2
    height = 44 * np.sqrt(np.clip(1 - across[None, :] - down[:, None], 0, 1) + 0.06)
    bumps = np.array(_bumps(person, look))
    centres = pose.turn(bumps[:, :2], surface_depth(bumps[:, :2]) + np.clip(bumps[:, 4], 0, 12))
    waves_x = np.exp(-(((rows[None, :] - centres[:, :1]) / bumps[:, 2:3]) ** 2))
    waves_y = np.exp(-(((rows[None, :] - centres[:, 1:]) / bumps[:, 3:4]) ** 2)) * bumps[:, 4:]
    relief: Map = (height + waves_y.T @ waves_x).astype(np.float32)
    return relief


def _bumps(person: Person, look: Look) -> list[_Bump]:
    """Return what rises from the egg that a head is at first."""
    nose, tip, eyes = person.nose_relief, person.nose_tip_y, person.eye_y
    bumps: list[_Bump] = [
        (0, 0.5 * (eyes + tip), person.nose_bridge + 1.0, 0.5 * (tip - eyes), 6.5 * nose),
        (0, tip - 0.5, 0.62 * person.nose_width, 4.6, 6.0 * nose),
        (0, person.mouth_y, 11, 7, 2.2),
        (0, person.chin_y - 6, 9, 6, 3.2),
    ]
    for side in (-1, 1):
        x = side * person.eye_spacing
        bumps += [
            (x, eyes, 9, 6.5, -4.2),
            (x, eyes - person.brow_height, 12, 4, 1.2 + 1.6 * person.build),
            (x, eyes, 5.5, 4, 1.6),
            (
                side * 26,
                -4 - 1.5 * look.smile,
                10,
                9,
                1 + 3.2 * person.cheekbones + max(0.0, look.smile),
            ),
            (side * 0.72 * person.nose_width, tip + 0.8, 2.6, 2.8, 2.2 * nose),
        ]
    return bumps


def _shading(relief: Map, look: Look) -> tuple[Map, Map]:
    """Return how bright each point is, about 1, and how much it shines, in [0, 1]."""
    slope_y, slope_x = np.gradient(relief)
    slope_x, slope_y = np.clip(slope_x, -1.6, 1.6), np.clip(slope_y, -1.6, 1.6)
    length = 1 / np.sqrt(slope_x**2 + slope_y**2 + 1)
    light = np.array([look.light_x, look.light_y, 1.1])
    light = light / np.sqrt(light @ light)
    facing = np.clip((light[2] - slope_x * light[0] - slope_y * light[1]) * length, 0, 1)
    strength = look.light_strength
    shade: Map = (1.04 - strength + strength * (0.1 + 1.0 * facing)).astype(np.float32)
    shine: Map = (strength * facing**14).astype(np.float32)
    return shade, shine


def _rolled(values: Map, pose: Pose) -> Map:
    """Return a map turned in the picture plane as the drawing is."""
    cosine, sine = float(np.cos(pose.roll)), float(np.sin(pose.roll))
    x, y = CENTRE
    turn = (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
    turned = Image.fromarray(np.pad(values, 8, mode="edge")).transform(
        (CROP_PX + 16, CROP_PX + 16),
        Image.Transform.AFFINE,
        (
            turn[0],
            turn[1],
            turn[2] + 8 - 8 * (turn[0] + turn[1]),
            turn[3],
            turn[4],
            turn[5] + 8 - 8 * (turn[3] + turn[4]),
        ),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(turned, dtype=np.float32)[8:-8, 8:-8]
