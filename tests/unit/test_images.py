import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sdd_ray.core.alignment import ARCFACE_TEMPLATE
from sdd_ray.formats.images import (
    BACKGROUND,
    FORMATS,
    ImageLimits,
    ImageRejectedError,
    decode_image,
)


def _encode(image, kind="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture(height=112, width=112, seed=0):
    """Return blocks of random colour: not symmetric, and hard to confuse."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def _reason(data, **options):
    with pytest.raises(ImageRejectedError) as caught:
        decode_image(data, **options)
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


@pytest.fixture(autouse=True)
def _no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the module itself does
        yield


def test_remarks_of_pillow_are_not_shown():
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    data = [
        _encode(Image.new("RGB", (112, 112)), "JPEG", exif=exif),
        _png_that_claims(12_000, 12_000),
    ]
    code = (
        "from sdd_ray.formats.images import ImageRejectedError, decode_image\n"
        f"print(decode_image({data[0]!r}).shape)\n"
        f"try: decode_image({data[1]!r})\n"
        "except ImageRejectedError as error: print(error.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(112, 112, 3)", "too_large"]
    assert done.stderr == ""


def test_threads_leave_the_warnings_of_the_process_alone():
    data, before = _encode(Image.new("RGB", (8, 8)), "JPEG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode_image, [data] * 2000))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_their_pixels(kind):
    pixels = _picture()
    decoded = decode_image(_encode(Image.fromarray(pixels), kind))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_close(kind):
    pixels = _picture()
    options = {} if kind == "GIF" else {"quality": 95}
    decoded = decode_image(_encode(Image.fromarray(pixels), kind, **options))
    assert np.abs(decoded.astype(int) - pixels).mean() < 8


def test_channels_are_rgb():
    decoded = decode_image(_encode(Image.new("RGB", (112, 112), (250, 100, 5))))
    assert decoded[50, 50].tolist() == [250, 100, 5]


# What a reader of a stored picture must do to see it upright, in numpy's terms.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_exif_orientation_is_applied_once(orientation, kind, mode):
    pixels = _picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(Image.fromarray(pixels).convert(mode), kind, exif=exif)
    np.testing.assert_array_equal(decode_image(data), UPRIGHT[orientation](pixels))


def test_jpeg_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((112, 112, 3), np.uint8)
    pixels[:56] = 255  # White above; turned clockwise it lies at the right.
    decoded = decode_image(_encode(Image.fromarray(pixels), "JPEG", exif=exif))
    assert decoded[:, 60:].min() > 240
    assert decoded[:, :52].max() < 15


def test_jpeg_orientation_in_xmp_is_applied():
    pixels = _picture()
    data = _encode(Image.fromarray(pixels), "JPEG", quality=95)
    remark = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="3"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(remark) + 2) + remark
    turned = decode_image(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(turned, decode_image(data)[::-1, ::-1])


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"])
def test_damaged_exif_does_not_reject_the_picture(exif):
    decoded = decode_image(_encode(Image.new("RGB", (112, 112), (9, 9, 9)), "JPEG", exif=exif))
    assert np.abs(decoded.astype(int) - 9).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(np.full((112, 112, 3), 255, np.uint8)).convert(mode)
    decoded = decode_image(_encode(image, "TIFF"))
    assert decoded.shape == (112, 112, 3)
    assert decoded.min() >= 254


def test_cmyk_jpeg_has_its_colours():
    image = Image.new("RGB", (112, 112), (200, 40, 40)).convert("CMYK")
    decoded = decode_image(_encode(image, "JPEG", quality=95))
    assert np.abs(decoded[50, 50].astype(int) - [200, 40, 40]).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_background(mode):
    pixels = np.zeros((112, 112, 4), np.uint8)
    pixels[..., :3] = 200
    pixels[:56, :, 3] = 255
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(pixels[..., 3] // 255)
        image.putpalette([1, 2, 3, 200, 200, 200])
        data = _encode(image, "PNG", transparency=0)
    else:
        data = _encode(image.convert(mode), "PNG")
    decoded = decode_image(data)
    assert (decoded[:56] == 200).all()
    assert (decoded[56:] == BACKGROUND).all()


def test_a_transparent_colour_shows_the_background():
    data = _encode(Image.new("RGB", (112, 112), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (decode_image(data) == BACKGROUND).all()


def test_half_transparent_parts_are_blended():
    decoded = decode_image(_encode(Image.new("RGBA", (112, 112), (255, 255, 255, 128))))
    assert np.abs(decoded.astype(int) - 191).max() <= 1


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bits_are_scaled_to_eight(kind, order):
    values = np.full((112, 112), 257 * 40, np.uint16)
    values[0] = 65535
    image = Image.fromarray(values.astype(f"{order}u2"))
    decoded = decode_image(_encode(image, kind))
    assert (decoded[0] == 255).all()
    assert (decoded[1:] == 40).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_rejected(mode):
    assert _reason(_encode(Image.new(mode, (112, 112)), "TIFF")) == "unsupported_pixels"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (112, 112), (value,) * 3) for value in (10, 240)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_image(data) == 10).all()


def test_result_does_not_depend_on_the_size_it_was_stored_in():
    gradient = np.linspace(0, 255, 448, dtype=np.uint8)
    pixels = np.broadcast_to(gradient[None, :, None], (448, 448, 3))
    decoded = decode_image(_encode(Image.fromarray(np.ascontiguousarray(pixels))))
    expected = pixels.reshape(112, 4, 112, 4, 3).mean((1, 3))
    assert np.abs(decoded[:, 2:-2] - expected[:, 2:-2]).max() < 1.5


def test_reduction_averages_what_it_covers():
    # Lines of one pixel: taking single pixels would give black or white, not grey.
    pixels = np.zeros((448, 448, 3), np.uint8)
    pixels[::2] = 255
    decoded = decode_image(_encode(Image.fromarray(pixels)))
    assert np.abs(decoded[1:-1].astype(int) - 127).max() < 2


@pytest.mark.parametrize(("height", "width"), [(112, 96), (224, 192)])
def test_other_shapes_are_centred_on_the_background(height, width):
    decoded = decode_image(_encode(Image.new("RGB", (width, height), (250, 0, 0))))
    assert (decoded[:, :8] == BACKGROUND).all()
    assert (decoded[:, 104:] == BACKGROUND).all()
    assert (decoded[:, 8:104] == [250, 0, 0]).all()


def test_an_aligned_crop_of_96_columns_keeps_its_place():
    pixels = _picture()
    decoded = decode_image(_encode(Image.fromarray(pixels[:, 8:104])))
    np.testing.assert_array_equal(decoded[:, 8:104], pixels[:, 8:104])


def test_small_pictures_are_enlarged_and_long_ones_stay_long():
    assert (decode_image(_encode(Image.new("L", (8, 8), 77))) == 77).all()
    long = decode_image(_encode(Image.new("L", (5000, 8), 255)), height=50, width=100)
    assert long.shape == (50, 100, 3)
    assert (long == 255).all(axis=(1, 2)).sum() == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not_an_image"),
        (b"\0" * 1000, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
        (b"\xff\xd8\xff", "not_an_image"),
    ],
)
def test_what_is_no_image_is_rejected(data, reason):
    assert _reason(data) == reason


def test_other_formats_are_not_decoded():
    assert _reason(_encode(Image.new("RGB", (112, 112)), "TGA")) == "not_an_image"
    assert _reason(_encode(Image.new("RGB", (112, 112)), "ICO")) == "not_an_image"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_rejected(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = _encode(Image.fromarray(noise), kind)
    reason = _reason(data[: int(len(data) * share)])
    assert reason in ("truncated", "damaged", "not_an_image")
    if kind == "JPEG" and share > 0.5:
        assert reason == "truncated"


def test_zeros_are_no_end_of_a_jpeg():
    # As after a broken download into a file of the right size: Pillow would decode them.
    data = _encode(Image.fromarray(_picture()), "JPEG")
    half = len(data) // 2
    assert _reason(data[:half] + bytes(len(data) - half)) == "truncated"
    np.testing.assert_array_equal(decode_image(data + bytes(100)), decode_image(data))


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_bytes_never_raise_another_kind_of_error(kind):
    content = np.frombuffer(_encode(Image.fromarray(_picture(48, 48)), kind), np.uint8)
    rejected = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        changed = content.copy()
        changed[rng.integers(0, min(80, content.size), 3)] = rng.integers(0, 256, 3)
        try:
            assert decode_image(changed.tobytes()).shape == (112, 112, 3)
        except ImageRejectedError:
            rejected += 1
    assert rejected > 10


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_tiny_pictures_are_rejected(size):
    assert _reason(_encode(Image.new("RGB", size))) == "too_small"


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_bombs_are_rejected_before_they_are_decoded(side, monkeypatch):
    # Within Pillow's own limit, at its warning, and at its error.
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert _reason(_png_that_claims(side, side)) == "too_large"


@pytest.mark.parametrize(
    ("name", "head"),
    [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")],
)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(("count", "megabytes"), [(1, 100), (100, 1)])
def test_remarks_that_unfold_are_rejected_in_little_memory(name, head, place, count, megabytes):
    data = _encode(Image.new("RGB", (112, 112)))
    before, after = data[: data.index(place) - 4], data[data.index(place) - 4 :]
    packer = zlib.compressobj()
    body = b"".join(packer.compress(bytes(1_000_000)) for _ in range(megabytes)) + packer.flush()
    bomb = before + _chunk(name, head + body) * count + after
    tracemalloc.start()
    try:
        if name == b"iCCP" and count > 1:
            assert decode_image(bomb).shape == (112, 112, 3)  # one replaces the other
        else:
            assert _reason(bomb) == "damaged"
        assert tracemalloc.get_traced_memory()[1] < 80_000_000  # Pillow allows 64 MiB of text
    finally:
        tracemalloc.stop()


def test_limits_can_be_changed():
    data = _encode(Image.new("RGB", (20, 20)))
    assert _reason(data, limits=ImageLimits(max_pixels=399)) == "too_large"
    assert _reason(data, limits=ImageLimits(min_side_px=21)) == "too_small"
    assert decode_image(data, limits=ImageLimits(20, 400)).shape == (112, 112, 3)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ImageRejectedError("too_small", "1 x 1")))  # noqa: S301
    assert (error.reason, error.detail) == ("too_small", "1 x 1")
    assert str(error) == "too_small: 1 x 1"


def test_real_faces_decode_as_they_are(cfp_images):
    assert cfp_images.std() > 20
    decoded = [decode_image(_encode(Image.fromarray(image))) for image in cfp_images]
    np.testing.assert_array_equal(np.stack(decoded), cfp_images)


def _landmarks(scale=1.0, right=0, down=0):
    return tuple((scale * ARCFACE_TEMPLATE + np.array([right, down])).ravel())


TEMPLATE = _landmarks()


def _noise(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_landmarks_of_the_template_change_nothing():
    pixels = _noise(112, 112)
    decoded = decode_image(_encode(Image.fromarray(pixels)), landmarks=TEMPLATE)
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.flags.writeable


def test_a_face_inside_an_image_is_cut_out():
    pixels = _noise(300, 200)
    points = _landmarks(1, 40, 90)
    decoded = decode_image(_encode(Image.fromarray(pixels)), landmarks=points)
    np.testing.assert_array_equal(decoded, pixels[90:202, 40:152])


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_landmarks_are_those_of_the_upright_image(orientation):
    pixels = _noise(120, 170)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(Image.fromarray(pixels), exif=exif)
    upright = _encode(Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](pixels))))
    points = _landmarks(0.8, 20, 5)
    decoded = decode_image(data, landmarks=points)
    np.testing.assert_array_equal(decoded, decode_image(upright, landmarks=points))
    assert decoded.std() > 40


def test_large_faces_are_not_averaged():
    # As InsightFace does it: one of four columns, here of lines that are black and white in turn.
    pixels = np.zeros((448, 448, 3), np.uint8)
    pixels[:, ::4] = 255
    points = _landmarks(4)
    assert (decode_image(_encode(Image.fromarray(pixels)), landmarks=points) == 255).all()


def test_beside_the_image_it_is_black_and_behind_it_background():
    data = _encode(Image.new("RGBA", (112, 112), (9, 9, 9, 0)))
    decoded = decode_image(data, landmarks=_landmarks(1, -30, 0))
    assert (decoded[:, :30] == 0).all()
    assert (decoded[:, 30:] == BACKGROUND).all()


def test_aligned_faces_have_the_asked_size():
    data = _encode(Image.new("RGB", (200, 200), (50, 60, 70)))
    assert decode_image(data, 56, 60, landmarks=TEMPLATE)[28, 30].tolist() == [50, 60, 70]


@pytest.mark.parametrize(
    ("points", "detail"),
    [
        ((*TEMPLATE[:9], float("nan")), "finite"),
        ((*TEMPLATE[:9], None), "finite"),
        ((*TEMPLATE[:9], float("inf")), "finite"),
        (TEMPLATE[:8], "got 8"),
        ((*TEMPLATE, 0.99), "got 11"),
        ((50.0,) * 10, "different"),
        ((0.0,) * 10, "different"),
        (ARCFACE_TEMPLATE[:, ::-1].ravel(), "left eye"),  # y before x
        (ARCFACE_TEMPLATE[[1, 0, 2, 4, 3]].ravel(), "left eye"),  # left as the person sees it
        (_landmarks(1, -100, -80), "in an image of 112 x 112"),
        (_landmarks(1e3), "in an image"),
        (_landmarks(3e36), "in an image"),
    ],
)
def test_landmarks_of_no_face_are_rejected(points, detail):
    data = _encode(Image.new("RGB", (112, 112)))
    with pytest.raises(ImageRejectedError, match=detail) as caught:
        decode_image(data, landmarks=points)
    assert caught.value.reason == "bad_landmarks"


TEMPLATE_IN_SPACE = np.column_stack(
    [ARCFACE_TEMPLATE - ARCFACE_TEMPLATE.mean(0), [0, 0, -28, -8, -8]]
)
"""Five points in x, y and depth, in pixels of a crop."""


def _turned(rng, yaw, pitch=20, roll=20):
    """Return landmarks, (5, 2), of a face turned by up to so many degrees, of any size and place.

    Points are off by 3 pixels of a crop.
    """
    angles = np.radians([rng.uniform(-most, most) for most in (yaw, pitch, roll)])
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    turn = [[a, 0, sa], [0, 1, 0], [-sa, 0, a]] @ np.array([[1, 0, 0], [0, b, -sb], [0, sb, b]])
    flat = (TEMPLATE_IN_SPACE @ turn)[:, :2] @ [[c, -sc], [sc, c]] + rng.normal(0, 3, (5, 2))
    return flat * rng.uniform(0.5, 2) + rng.uniform(100, 300, 2)


def _in_another_order(points):
    """Return the points that come of taking x1 y1 x2 ... for x1 x2 ..., and the other way round."""
    return [points.reshape(2, 5).T, points.T.reshape(5, 2)]


def _bad_landmarks(data, points):
    """Return what is wrong with landmarks, or None."""
    try:
        decode_image(data, landmarks=points.ravel())
    except ImageRejectedError as error:
        return f"{error.reason}: {error.detail}"
    return None


def test_landmarks_in_another_order_are_noticed():
    data = _encode(Image.new("L", (400, 400)))
    for points in _in_another_order(ARCFACE_TEMPLATE):
        assert "source.landmark_order" in _bad_landmarks(data, points)
    rng = np.random.default_rng(0)
    faces = [_turned(rng, 45) for _ in range(100)]
    assert not any(_bad_landmarks(data, points) for points in faces)
    for other in zip(*map(_in_another_order, faces), strict=True):
        assert sum(_bad_landmarks(data, points) is None for points in other) <= 5


def test_faces_in_profile_are_seldom_taken_for_another_order():
    data = _encode(Image.new("L", (400, 400)))
    rng = np.random.default_rng(1)
    faces = [_turned(rng, 90, 30, 45) for _ in range(200)]
    assert sum(_bad_landmarks(data, points) is not None for points in faces) <= 4


@pytest.mark.parametrize(
    ("points", "order"),
    [([(9, 9), (9, 9), (9, 90), (90, 90), (90, 90)], 0), ([*[(9, 90), (90, 9)] * 2, (9, 90)], 1)],
)
def test_points_that_are_one_when_read_in_another_order(points, order):
    points = np.array(points)
    assert np.ptp(_in_another_order(points)[order], axis=0).tolist() == [0, 0]
    data = _encode(Image.new("L", (112, 112)))
    assert _bad_landmarks(data, points).startswith("bad_landmarks")


def test_faces_at_the_corner_and_in_profile_are_kept():
    data = _encode(Image.new("RGB", (112, 112), (80, 80, 80)))
    corner = decode_image(data, landmarks=_landmarks(1, 50, 50))
    assert (corner == 80).all(axis=2).mean() > 0.25
    profile = (ARCFACE_TEMPLATE * (0, 1) + (56, 0)).ravel()
    assert decode_image(data, landmarks=profile).mean() > 40


def test_a_face_of_few_pixels_is_too_small():
    data = _encode(Image.new("RGB", (112, 112)))
    assert _reason(data, landmarks=_landmarks(0.05)) == "too_small"
    assert decode_image(data, landmarks=_landmarks(0.1)).shape == (112, 112, 3)
