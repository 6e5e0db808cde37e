"""Templates: frames are averaged, media summed, in any order of the images."""

import numpy as np
import pytest

from sdd_ray.core.templates import average_templates, template_qualities, weighted_templates


def by_loops(unit, templates, media, number):
    rows = []
    for template in range(number):
        total = np.zeros(unit.shape[1])
        for medium in sorted(set(media[templates == template].tolist())):
            total += unit[(templates == template) & (media == medium)].mean(axis=0)
        rows.append(total / np.linalg.norm(total))
    return np.array(rows)


def test_average_equals_loops_in_any_order():
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((200, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    templates = np.concatenate([np.arange(30), rng.integers(0, 30, 170)])
    media = rng.integers(-3, 4, 200)
    found = average_templates(unit, templates, media, 30)
    np.testing.assert_allclose(found, by_loops(unit, templates, media, 30), atol=1e-6)
    order = rng.permutation(200)
    mixed = average_templates(unit[order], templates[order], media[order], 30)
    np.testing.assert_allclose(found, mixed, atol=1e-6)


def test_a_video_counts_as_much_as_a_picture():
    unit = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    found = average_templates(unit, np.zeros(4, np.int64), np.array([7, 7, 7, 8]), 1)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_images_that_cancel_out_are_a_row_of_zeros():
    unit = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    templates = np.array([0, 0, 1])
    for found in (
        average_templates(unit, templates, np.arange(3), 2),
        weighted_templates(unit, np.ones(3), templates, 2),
    ):
        assert found.tolist() == [[0, 0], [0, 1]]


def test_quality_is_the_mean_of_the_images_that_have_one():
    qualities = np.array([1.0, np.nan, 4.0, np.nan, 9.0, 5.0])
    found = template_qualities(qualities, np.array([0, 0, 1, 2, 1, 1]), 4)
    np.testing.assert_array_equal(found, [1.0, 6.0, np.nan, np.nan])


def test_weights_count_images():
    generator = np.random.default_rng(4)
    templates = generator.permutation(np.repeat(np.arange(9), 4))
    unit = generator.standard_normal((36, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weights = generator.integers(0, 4, 36).astype(np.float32)
    weights[templates == 5] = 0
    weights[:2] = np.nan
    found = weighted_templates(unit, weights, templates, 9)
    for template in range(9):
        rows = np.flatnonzero(templates == template)
        counted = np.nan_to_num(weights[rows]).astype(int)
        if not counted.any():
            counted[:] = 1
        mean = np.repeat(unit[rows], counted, axis=0).mean(axis=0)  # a weight of 3 is three images
        np.testing.assert_allclose(found[template], mean / np.linalg.norm(mean), atol=1e-6)
    again = weighted_templates(unit, 7.5 * weights, templates, 9)
    np.testing.assert_allclose(again, found, atol=1e-6)
    same = np.ones(36)
    media = np.arange(36)
    plain = average_templates(unit, templates, media, 9)
    np.testing.assert_allclose(weighted_templates(unit, same, templates, 9), plain, atol=1e-6)


@pytest.mark.parametrize("weight", [-1.0, np.inf])
def test_weights_are_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="expected finite weights of at least 0"):
        weighted_templates(np.ones((1, 2), np.float32), np.array([weight]), np.zeros(1, int), 1)
