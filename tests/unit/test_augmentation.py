"""Augmentation: the key alone decides who is changed, and each kind of damage has an oracle."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from sdd_ray.core import augmentation
from sdd_ray.core.augmentation import degrade, mirror
from sdd_ray.core.hashing import mix
from sdd_ray.synthetic.samples import SyntheticSet, draw_sample, keys

STRONGEST = augmentation._LEVELS - 1


def keys_of(count, first=0):
    return mix(np.arange(first, first + count, dtype=np.uint64))


@pytest.fixture(scope="module")
def faces():
    """Eight drawn faces, 112 x 112."""
    drawn = SyntheticSet(seed=0, num_identities=4, images_per_identity=2, degraded_share=0.0)
    return np.stack([draw_sample(drawn, *key).image for key in keys(drawn)])


@pytest.fixture(scope="module")
def grain():
    """Many small images of noise."""
    return np.random.default_rng(0).integers(0, 256, (2000, 8, 6, 3)).astype(np.uint8)


def mirrored(images, keys, seed=0, epoch=0):
    """Return which images are from right to left; the others must be what they were."""
    changed = mirror(images, keys, seed, epoch)
    is_mirrored = (changed == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(changed[~is_mirrored], images[~is_mirrored])
    return is_mirrored


def degraded(images, keys, share, seed=0, epoch=0):
    return degrade(torch.from_numpy(images), keys, share, seed, epoch).numpy()


def changed_by(images, keys, share, seed=0, epoch=0):
    return (degraded(images, keys, share, seed, epoch) != images).any((1, 2, 3))


@pytest.fixture
def negative(monkeypatch):
    """Damage that no image survives: a weak blur may leave a small one as it was."""
    monkeypatch.setattr(augmentation, "_KINDS", (lambda images, *_: 255 - images,) * 5)


def one(damage, image, level, key=7):
    """Return a float image after one kind of damage."""
    [after] = damage(torch.from_numpy(image[None]), [level], np.array([key], np.uint64)).numpy()
    return after.astype(np.float64)


def test_half_of_the_images_are_whole_images_from_right_to_left(grain):
    assert stats.binomtest(int(mirrored(grain, keys_of(2000)).sum()), 2000).pvalue > 1e-4


def test_mirrored_twice_is_the_same(grain):
    keys = keys_of(2000)
    np.testing.assert_array_equal(mirror(mirror(grain, keys, 3, 1), keys, 3, 1), grain)


@pytest.mark.usefixtures("negative")
@pytest.mark.parametrize("chosen", [mirrored, lambda *a, **k: changed_by(*a[:2], 0.5, **k)])
def test_choice_differs_between_seeds_and_epochs_without_relation(grain, chosen):
    keys = keys_of(2000)
    first = chosen(grain, keys)
    for other in [{"seed": 1}, {"epoch": 1}, {"seed": 2**32 - 1}, {"seed": 1, "epoch": 1}]:
        agree = (chosen(grain, keys, **other) == first).mean()
        assert abs(agree - 0.5) < 0.05


@pytest.mark.usefixtures("negative")
def test_degrading_has_no_relation_to_mirroring_nor_to_a_lower_share(grain):
    keys = keys_of(2000)
    worse, few = changed_by(grain, keys, 0.5), changed_by(grain, keys, 0.2)
    assert abs((mirrored(grain, keys) == worse).mean() - 0.5) < 0.05
    assert (worse[few]).all()  # a larger share degrades the same images and more


@pytest.mark.usefixtures("negative")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_share_is_respected(grain, share):
    count = int(changed_by(grain, keys_of(2000), share).sum())
    assert stats.binomtest(count, 2000, share).pvalue > 1e-4


def test_kinds_are_equally_likely(monkeypatch):
    counts = np.zeros(5, int)

    def counting(kind):
        def damage(images, levels, grain):
            counts[kind] += len(images)
            assert min(levels) >= 0
            assert max(levels) < augmentation._LEVELS
            return images

        return damage

    monkeypatch.setattr(augmentation, "_KINDS", tuple(counting(k) for k in range(5)))
    degraded(np.zeros((4000, 1, 1, 3), np.uint8), keys_of(4000), 1.0)
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 1e-4


def test_images_do_not_depend_on_their_batch(faces):
    images, keys = np.tile(faces, (5, 1, 1, 1)), keys_of(40)
    changes = [lambda x, k: mirror(x, k, 1, 2), lambda x, k: degraded(x, k, 0.9, 1, 2)]
    for change in changes:
        whole = change(images, keys)
        order = np.random.default_rng(0).permutation(40)
        np.testing.assert_array_equal(change(images[order], keys[order]), whole[order])
        for part in (slice(0, 1), slice(3, 20), slice(39, 40), slice(5, 5)):
            np.testing.assert_array_equal(change(images[part], keys[part]), whole[part])


def test_number_of_threads_is_of_no_effect(faces):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(degraded(faces, keys_of(8), 1.0))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_images_that_are_given_stay_as_they_are(faces):
    given = faces.copy()
    mirror(given, keys_of(8), 0, 0)
    degrade(torch.from_numpy(given), keys_of(8), 1.0, 0, 0)
    np.testing.assert_array_equal(given, faces)


def test_result_has_the_shape_and_type_of_the_images():
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 24, 3)).astype(np.uint8)
    after = degrade(torch.from_numpy(image), keys_of(30), 1.0, 0, 0)
    assert (after.shape, after.dtype) == (image.shape, torch.uint8)


@pytest.mark.parametrize("level", [0, 20, STRONGEST])
def test_blur_against_scipy(faces, level):
    image = faces[0][:, 8:-8].astype(np.float64)  # its sides are of different length
    height, width = image.shape[:2]
    share = 0.005 + 0.03 * level / STRONGEST

    def smooth(values):
        sigmas = (height * share, width * share, 0)
        return ndimage.gaussian_filter(values, sigmas, mode="constant", truncate=8)

    wanted = smooth(image) / smooth(np.ones_like(image))
    # Half a level of the rounding, and weights that are whole 2,048ths.
    assert np.abs(one(augmentation._blur, image.astype(np.uint8), level) - wanted).max() < 1


@pytest.mark.parametrize(("level", "small"), [(0, 75), (30, 48), (STRONGEST, 19)])
def test_shrinking_against_pillow(faces, level, small):
    picture = Image.fromarray(faces[1])
    resample = Image.Resampling.BILINEAR
    wanted = np.asarray(picture.resize((small, small), resample).resize((112, 112), resample))
    # Pillow rounds to whole levels in between four times.
    gap = np.abs(one(augmentation._shrink, faces[1], level) - wanted)
    assert gap.max() <= 3
    assert gap.mean() < 0.5


@pytest.mark.parametrize("damage", [augmentation._blur, augmentation._shrink])
@pytest.mark.parametrize("level", range(0, augmentation._LEVELS, 7))
def test_resampling_leaves_one_colour_as_it_is(damage, level):
    image = np.empty((1, 40, 33, 3), np.uint8)
    image[...] = (255, 128, 1)
    np.testing.assert_array_equal(one(damage, image[0], level), image[0])


@pytest.mark.parametrize("damage", [augmentation._blur, augmentation._shrink])
def test_resampling_is_exact_in_whole_numbers(damage):
    """The claim on which independence of batch and device rests, in Python's own integers."""
    level, image = 40, np.random.default_rng(0).integers(0, 256, (10, 8, 3))
    weights = {"_blur": augmentation._blurring, "_shrink": augmentation._shrinking}
    down, across = (
        weights[damage.__name__](size, level).numpy().astype(np.int64) for size in image.shape[:2]
    )
    assert (down.sum(1) == 2048).all()
    assert (down >= 0).all()
    mixed = np.rint(np.einsum("rh,hwc->rwc", down, image) / 256)
    mixed = np.rint(np.einsum("cw,rwk->rck", across, mixed) / 2**14)
    np.testing.assert_array_equal(one(damage, image.astype(np.uint8), level), mixed)


@pytest.mark.parametrize(("level", "deviation"), [(0, 3.0), (STRONGEST, 25.0)])
def test_noise_is_normal_independent_and_unlike_that_of_another_key(level, deviation):
    grey = np.full((112, 112, 3), 128, np.uint8)
    noise, other = (one(augmentation._noise, grey, level, key) - 128 for key in (7, 8))
    spread = np.hypot(deviation, np.sqrt(1 / 12))
    assert noise.std() == pytest.approx(spread, rel=0.02)
    assert abs(noise.mean()) < 4 * spread / np.sqrt(noise.size)
    assert stats.kstest(noise.ravel() / spread, "norm").statistic < 0.2 / deviation + 0.01
    pairs = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise, other)]
    pairs += [(noise[..., 0], noise[..., 1]), (noise[..., 0], noise[..., 2])]
    for first, second in pairs:
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


def test_noise_ends_at_black_and_white():
    image = np.zeros((20, 20, 3), np.uint8)
    image[10:] = 255
    after = one(augmentation._noise, image, STRONGEST)
    assert (after[:10] == 0).mean() == pytest.approx(0.5, abs=0.1)
    assert (after[10:] == 255).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("level", "gamma"), [(0, 2**-1.5), (31, 2 ** (-0.5 - 1 / 63)), (STRONGEST, 2**1.5)]
)
def test_gamma_against_its_formula(faces, level, gamma):
    wanted = np.round(255 * (faces[2] / 255) ** gamma)
    np.testing.assert_array_equal(one(augmentation._expose, faces[2], level), wanted)


@pytest.mark.parametrize(("level", "left"), [(0, 0.75), (STRONGEST, 0.25)])
def test_contrast_against_its_formula(faces, level, left):
    after = one(augmentation._flatten, faces[3], level)
    assert np.abs(after - (127.5 + left * (faces[3] - 127.5))).max() <= 0.5


@pytest.mark.parametrize(
    "damage", [augmentation._blur, augmentation._shrink, augmentation._noise, augmentation._flatten]
)
def test_stronger_is_worse(faces, damage):
    gaps = [
        np.abs(one(damage, face, level) - face).mean((0, 1)).mean()
        for face in faces
        for level in range(0, 64, 9)
    ]
    assert (np.diff(np.reshape(gaps, (len(faces), -1))) > 0).all()
