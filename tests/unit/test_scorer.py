"""The Python API: any kind of image, one at a time or many, on threads, without Ray."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from drawn_faces import face
from PIL import Image
from quality_models import made_model, pixels, write_model

import sdd_ray
from sdd_ray.core.thresholds import Threshold
from sdd_ray.errors import InputError, ResourceError
from sdd_ray.formats.images import ImageLimits, ImageRejectedError, fit_pixels
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    plain = made_model()
    thresholds = {"middle": Threshold(float(np.median(plain.calibration.raw)), {"aim": "discard"})}
    model = QualityModel(
        plain.network,
        plain.architecture,
        plain.preprocessing,
        plain.calibration,
        thresholds=thresholds,
    )
    return write_model(tmp_path_factory.mktemp("model"), model)


@pytest.fixture(scope="module")
def model(folder):
    return sdd_ray.load_model(folder)


FACES = pixels([face(person, n) for person in range(5) for n in range(2)])


def png(image):
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_input_gives_the_same(model, tmp_path):
    paths = []
    for number, image in enumerate(FACES):
        paths.append(tmp_path / f"{number} ü.png")
        paths[-1].write_bytes(png(image))
    wanted = model.score(FACES)
    assert len(wanted) == len(FACES)
    assert len(set(wanted.quality.tolist())) > 5
    assert (wanted.quality.dtype, wanted.raw.dtype) == (np.int8, np.float32)
    assert wanted.accepted is None
    np.testing.assert_array_equal(wanted.quality, np.floor(wanted.value + 0.5))
    inputs = (
        list(FACES),
        paths,
        list(map(str, paths)),
        np.array(list(map(str, paths))),
        np.array(paths, object),
        [path.read_bytes() for path in paths],
        (image for image in FACES),
    )
    for images in inputs:
        found = model.score(images)
        np.testing.assert_array_equal(found.raw, wanted.raw)
        np.testing.assert_array_equal(found.quality, wanted.quality)
        assert found.reasons == (None,) * len(FACES)
    for one in (FACES[3], paths[3], str(paths[3]), paths[3].read_bytes()):
        found = model.score(one)
        np.testing.assert_allclose(found.raw, wanted.raw[3:4], rtol=1e-5)


def test_qualities_depend_on_no_other_image(folder, model):
    wanted = model.score(FACES)
    one_by_one = np.concatenate([model.score(image).raw for image in FACES])
    np.testing.assert_allclose(one_by_one, wanted.raw, rtol=1e-5)
    order = np.random.default_rng(0).permutation(len(FACES))
    np.testing.assert_allclose(model.score(FACES[order]).raw, wanted.raw[order], rtol=1e-5)
    for size in (1, 3, 64):
        other = sdd_ray.load_model(folder, batch_size=size).score([*FACES, b"", *FACES[::-1]])
        np.testing.assert_allclose(other.raw[:10], wanted.raw, rtol=1e-5)
        np.testing.assert_allclose(other.raw[11:], wanted.raw[::-1], rtol=1e-5)
        assert np.abs(other.quality[:10] - wanted.quality).max() <= 1  # at the edge of rounding
        assert np.isnan(other.raw[10])


def test_what_cannot_be_assessed_is_told_and_nothing_else_is_lost(model, tmp_path):
    whole = png(FACES[0])
    images = [
        FACES[0],
        b"",
        b"no picture at all",
        whole[: len(whole) // 2],
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        tmp_path / "nowhere.png",
        FACES[1],
    ]
    found = model.score(images, threshold=0)
    assert found.reasons == (
        *(None, "empty", "not_an_image", "truncated", "too_small", "empty", "unreadable"),
        None,
    )
    assert (found.quality >= 0).tolist() == [reason is None for reason in found.reasons]
    assert found.quality[1:7].tolist() == [-1] * 6
    np.testing.assert_array_equal(np.isnan(found.raw), found.quality < 0)
    assert found.accepted.tolist() == (found.quality >= 0).tolist()
    assert "nowhere.png" in found.details[6]
    np.testing.assert_allclose(found.raw[[0, 7]], model.score(FACES[:2]).raw, rtol=1e-5)


def test_no_image_is_no_score(model):
    found = model.score([])
    assert (len(found), found.reasons, found.raw.shape) == (0, (), (0,))
    assert len(model.score(np.zeros((0, 112, 112, 3), np.uint8))) == 0


def test_grey_is_three_equal_channels_and_other_sizes_are_fitted(model):
    grey = np.asarray(Image.fromarray(FACES[0]).convert("L"))
    wanted = model.score(np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(model.score(grey).raw, wanted.raw)
    large = np.asarray(Image.fromarray(FACES[0]).resize((448, 448)))
    np.testing.assert_array_equal(model.score(large).raw, model.score(png(large)).raw)


def test_sizes_are_limited_for_pixels_too():
    with pytest.raises(ImageRejectedError, match="too_large: expected at most 100 pixels"):
        fit_pixels(np.zeros((11, 10, 3), np.uint8), limits=ImageLimits(max_pixels=100))


def test_landmarks_align(model):
    template = np.array([38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2])
    canvas = np.zeros((300, 300, 3), np.uint8)
    canvas[100:212, 60:172] = FACES[2]
    moved = template + np.tile([60, 100], 5)
    aligned = model.score([canvas, FACES[2]], landmarks=[moved, template])
    np.testing.assert_allclose(aligned.raw[0], aligned.raw[1], rtol=1e-3)
    with pytest.raises(ValueError, match="shorter"):
        model.score([canvas, canvas], landmarks=[moved])
    assert model.score(canvas, landmarks=[moved[:4]]).reasons == ("bad_landmarks",)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((112, 112, 3), np.float32), ValueError, "got float32 of shape"),
        (np.zeros((112, 112, 4), np.uint8), ValueError, r"expected uint8 pixels of shape \(H, W"),
        (np.zeros(5, np.uint8), ValueError, r"got uint8 of shape \(5,\)"),
        ([7], TypeError, "expected a path, bytes or an array of pixels, got int"),
    ],
)
def test_mistakes_of_the_program_are_errors(model, image, error, message):
    with pytest.raises(error, match=message):
        model.score(image)


def test_thresholds(model):
    quality = model.score(FACES).quality
    for fifty in (50, np.int64(50)):
        found = model.score(FACES, threshold=fifty)
        np.testing.assert_array_equal(found.accepted, quality >= 50)
    named = model.score(FACES, threshold="middle")
    least = model.model.thresholds["middle"].raw
    np.testing.assert_array_equal(named.accepted, named.raw.astype(float) >= least)
    assert 0 < named.accepted.sum() < len(FACES)
    with pytest.raises(InputError, match="no threshold 'other'; it has middle"):
        model.score(FACES, threshold="other")


def test_threads_share_a_model(model):
    wanted = model.score(FACES)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: model.score(FACES), range(12)))
    for scores in found:
        np.testing.assert_array_equal(scores.raw, wanted.raw)


def test_wrong_models(tmp_path, folder):
    with pytest.raises(InputError, match=r"expected a model folder with model\.json"):
        sdd_ray.load_model(tmp_path)
    with pytest.raises(ValueError, match="expected a positive batch_size, got 0"):
        sdd_ray.load_model(folder, batch_size=0)
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="expected the device cuda"):
            sdd_ray.load_model(folder, device="cuda")


def test_model_and_images_may_lie_on_s3(s3_bucket, folder, model):
    place = Location(f"s3://{s3_bucket}/set")
    for name in ("model.safetensors", "model.json"):
        (place / "model" / name).write_bytes((Location(folder) / name).read_bytes())
    (place / "a.png").write_bytes(png(FACES[0]))
    found = sdd_ray.load_model(f"{place.uri}/model").score([f"{place.uri}/a.png", FACES[1]])
    np.testing.assert_allclose(found.raw, model.score(FACES[:2]).raw, rtol=1e-5)
    assert model.score(f"{place.uri}/b.png").reasons == ("unreadable",)


def test_no_ray_is_needed(folder):
    program = (
        "import sys; sys.modules['ray'] = None; import numpy as np, sdd_ray;"
        f"model = sdd_ray.load_model({folder!r});"
        "print(model.score(np.full((112, 112, 3), 127, np.uint8)).quality)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[")
