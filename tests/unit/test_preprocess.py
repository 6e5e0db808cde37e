import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdd_ray.core.preprocess import PRESETS, Preprocessing


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("arcface", lambda x: (x - 127.5) / 127.5),
        ("arcface_128", lambda x: (x - 127.5) / 128),
        ("imagenet", lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ],
)
def test_presets_follow_their_formula(images, name, formula):
    expected = formula(images.astype(np.float64)).transpose(0, 3, 1, 2)
    values = PRESETS[name].apply(images)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_arcface_spans_minus_one_to_one():
    images = np.zeros((1, 112, 112, 3), np.uint8)
    images[0, 0] = 255
    values = PRESETS["arcface"].apply(images)
    assert (values.min(), values.max()) == (-1.0, 1.0)


def test_fewer_columns_take_the_centre(images):
    # The convention of 112 x 96 recognisers: columns 8 to 103.
    whole = Preprocessing().apply(images)
    narrow = Preprocessing(width=96).apply(images)
    np.testing.assert_array_equal(narrow, whole[..., 8:104])
    low = Preprocessing(height=111).apply(images)
    np.testing.assert_array_equal(low, whole[:, :, :111])


def test_bgr_swaps_channels_before_mean_and_std(images):
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    bgr = Preprocessing(channel_order="bgr", mean=mean, std=std).apply(images)
    rgb = Preprocessing(mean=mean, std=std).apply(images[..., ::-1])
    np.testing.assert_array_equal(bgr, rgb)


@pytest.mark.parametrize(
    "preprocessing",
    [*PRESETS.values(), Preprocessing(width=96, channel_order="bgr", mean=(1.0, 2.0, 3.0))],
)
def test_tensors_get_the_same_values(images, preprocessing):
    values = preprocessing.apply_tensor(torch.from_numpy(images))
    assert values.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(values.numpy(), preprocessing.apply(images), atol=1e-6)


class _FromHost(TorchDispatchMode):
    """Note the operations that take a tensor of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_device_is_sent_nothing_from_the_second_batch_on(images, order):
    """Copies from ordinary memory wait for the device; `meta` stands for a GPU."""
    preprocessing = Preprocessing(width=100, channel_order=order, mean=(3.0, 5.0, 8.0))
    pixels = torch.zeros(images.shape, dtype=torch.uint8, device="meta")
    sent = []
    for _ in range(2):
        with _FromHost() as seen, torch.inference_mode():
            assert preprocessing.apply_tensor(pixels).device.type == "meta"
        sent.append(seen.found)
    assert sent[0]
    assert sent[1] == []
    values = preprocessing.apply_tensor(torch.from_numpy(images))  # of the CPU are others
    np.testing.assert_allclose(values.numpy(), preprocessing.apply(images), atol=1e-5)


def test_values_kept_from_inference_serve_training(images):
    preprocessing = Preprocessing(mean=(13.0, 5.0, 8.0))
    with torch.inference_mode():
        preprocessing.apply_tensor(torch.from_numpy(images))
    values = preprocessing.apply_tensor(torch.from_numpy(images))
    weight = torch.ones(3, requires_grad=True)
    torch.autograd.backward((values * weight[:, None, None]).sum())
    np.testing.assert_allclose(weight.grad, values.sum((0, 2, 3)), rtol=1e-4)


def test_input_is_left_alone_and_may_be_read_only(images):
    images.flags.writeable = False
    before = images.copy()
    PRESETS["imagenet"].apply(images)
    np.testing.assert_array_equal(images, before)


def test_no_images_give_no_images():
    assert Preprocessing().apply(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0, 3, 112, 112)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 112, 112, 3), np.float32, "expected uint8 pixels, got float32"),
        ((112, 112, 3), np.uint8, r"expected \(N, H, W, 3\) images, got shape \(112, 112, 3\)"),
        ((1, 3, 112, 112), np.uint8, r"got shape \(1, 3, 112, 112\)"),
        ((1, 112, 95, 3), np.uint8, "at least 112 x 112 pixels, got 112 x 95"),
    ],
)
def test_wrong_images_are_refused(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing().apply(np.zeros(shape, dtype))


def test_float_tensors_are_refused():
    with pytest.raises(ValueError, match=r"uint8 pixels, got torch\.float32"):
        Preprocessing().apply_tensor(torch.zeros(1, 112, 112, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"height": 0}, "positive"),
        ({"channel_order": "rbg"}, "rgb or bgr, got 'rbg'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize("name", PRESETS)
def test_description_survives_json(name):
    description = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert Preprocessing.from_dict(description) == PRESETS[name]


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match="widht"):
        Preprocessing.from_dict({"widht": 96})


def test_a_mean_of_two_channels_is_refused():
    with pytest.raises(ValueError, match="expected 3, got 2"):
        Preprocessing.from_dict({"mean": [1.0, 2.0]})
