"""Five points are brought to the template by turn, scale and shift, and pixels follow them."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from scipy.optimize import minimize

from sdd_ray.core.alignment import (
    ARCFACE_TEMPLATE,
    bilinear,
    misfit,
    sample_points,
    similarity_transform,
)

WIDE = {"min_value": -300, "max_value": 300, "allow_nan": False, "width": 32}
POINTS = st.lists(st.tuples(st.floats(**WIDE), st.floats(**WIDE)), min_size=5, max_size=5).filter(
    lambda points: np.ptp(np.array(points), axis=0).max() > 1
)


def matrix_of(scale, degrees, shift):
    angle = np.deg2rad(degrees)
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return np.column_stack([scale * np.array(turn), shift])


def moved(points, matrix):
    return np.asarray(points, float) @ matrix[:, :2].T + matrix[:, 2]


def residual(points, matrix):
    return ((moved(points, matrix) - ARCFACE_TEMPLATE) ** 2).sum()


def umeyama(points, target):
    """The published solution: singular values, and a sign against mirroring."""
    source_mean, target_mean = points.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (points - source_mean) / len(points)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / ((points - source_mean) ** 2).sum(axis=1).mean()
    return np.column_stack([scale * turn, target_mean - scale * turn @ source_mean])


@pytest.mark.parametrize("scale", [0.05, 1, 3.7])
@pytest.mark.parametrize("degrees", [0, 12, -90, 180])
def test_a_known_transform_is_recovered(scale, degrees):
    known = matrix_of(scale, degrees, (31.5, -7.25))
    inverse = np.linalg.inv(np.vstack([known, [0, 0, 1]]))[:2]
    points = moved(ARCFACE_TEMPLATE, inverse)
    np.testing.assert_allclose(similarity_transform(points), known, atol=1e-10)
    assert misfit(points, known) < 1e-20


@given(POINTS)
def test_the_published_solution(points):
    points = np.array(points)
    found = similarity_transform(points)
    spread = np.ptp(points, axis=0).max()
    expected = umeyama(points, ARCFACE_TEMPLATE)
    np.testing.assert_allclose(moved(points, found), moved(points, expected), atol=1e-7)
    assert np.linalg.det(found[:, :2]) >= 0
    # No turned, scaled or shifted neighbour is closer to the template.
    least = residual(points, found)
    for step in (1e-3, -1e-3):
        turned = found.copy()
        turned[:, :2] = matrix_of(1, np.rad2deg(step), (0, 0))[:, :2] @ found[:, :2]
        scaled = found * [1 + step, 1 + step, 1]
        shifted = found + np.array([[0, 0, step * spread], [0, 0, 0]])
        for other in (turned, scaled, shifted):
            assert residual(points, other) >= least - 1e-6


def test_nothing_found_by_search_is_closer():
    points = np.random.default_rng(3).normal(size=(5, 2)) * 40 + ARCFACE_TEMPLATE * 2

    def cost(values):
        a, b, x, y = values
        return residual(points, np.array([[a, -b, x], [b, a, y]]))

    searched = minimize(cost, [1, 0, 0, 0], method="BFGS", tol=1e-10)
    found = similarity_transform(points)
    assert residual(points, found) <= searched.fun + 1e-9
    np.testing.assert_allclose(found[:, 0], searched.x[:2], atol=1e-5)


def test_a_mirrored_face_is_not_mirrored_back():
    mirrored = ARCFACE_TEMPLATE * (-1, 1)
    matrix = similarity_transform(mirrored)
    assert np.linalg.det(matrix[:, :2]) > 0
    assert misfit(mirrored, matrix) > 0.9


@pytest.mark.parametrize(("squeeze", "largest"), [((0, 1), 0.4), ((1, 0), 0.65), ((0.6, 1), 0.1)])
def test_points_on_a_line_are_enough(squeeze, largest):
    points = ARCFACE_TEMPLATE * squeeze
    assert misfit(points, similarity_transform(points)) < largest


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 2), 3.3), "different points"),
        (np.where(np.eye(5, 2), np.nan, 1), "finite points"),
        (np.where(np.eye(5, 2), np.inf, 1), "finite points"),
        (np.zeros((4, 2)), r"\(5, 2\), got \(4, 2\)"),
        (np.zeros(10), r"got \(10,\)"),
    ],
)
def test_points_that_say_nothing(points, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(points)


def test_a_transform_onto_a_point_has_no_samples():
    with pytest.raises(ValueError, match="invertible"):
        sample_points(np.zeros((2, 3)))


def test_sample_points_lead_back():
    matrix = matrix_of(0.4, 20, (9, -30))
    x, y = sample_points(matrix, 5, 7)
    assert x.shape == y.shape == (5, 7)
    there = moved(np.stack([x, y], axis=-1).reshape(-1, 2), matrix)
    rows, columns = np.mgrid[:5, :7]
    np.testing.assert_allclose(there, np.stack([columns, rows], axis=-1).reshape(-1, 2), atol=1e-9)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (140, 131, 3), dtype=np.uint8)


def warped(image, matrix):
    return bilinear(image, *sample_points(matrix))


def test_nothing_to_do_changes_nothing(noise):
    np.testing.assert_array_equal(
        warped(noise, similarity_transform(ARCFACE_TEMPLATE)), noise[:112, :112]
    )


@pytest.mark.parametrize(("right", "down"), [(0, 19), (5, 0), (17, 28)])
def test_whole_shifts_are_exact(noise, right, down):
    matrix = similarity_transform(ARCFACE_TEMPLATE + np.array([right, down]))
    np.testing.assert_array_equal(
        warped(noise, matrix), noise[down : down + 112, right : right + 112]
    )


def test_shifts_beyond_the_edge_show_black(noise):
    found = warped(noise, matrix_of(1, 0, (30, 0)))
    assert (found[:, :30] == 0).all()
    np.testing.assert_array_equal(found[:, 30:], noise[:112, :82])


@pytest.mark.parametrize(
    "matrix",
    [
        matrix_of(0.9, 10, (3.3, 8.8)),
        matrix_of(2.5, -35, (-60, 20)),
        matrix_of(0.3, 100, (70, 10)),  # the whole image, with black on all sides
        matrix_of(1, 0, (500, 500)),  # all of it outside
        matrix_of(1, 0, (-130.5, 0)),  # half of the last column
    ],
)
def test_pixels_are_those_of_scipy(noise, matrix):
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    turn, shift = inverse[::-1, 1::-1], inverse[::-1, 2]  # rows first
    expected = np.stack(
        [
            scipy.ndimage.affine_transform(
                channel.astype(float), turn, shift, (112, 112), order=1, mode="grid-constant"
            )
            for channel in np.moveaxis(noise, 2, 0)
        ],
        axis=-1,
    )
    assert np.abs(warped(noise, matrix) - expected).max() <= 0.51


def test_positions_may_be_anywhere():
    image = np.full((1, 1, 3), 200, np.uint8)
    at = np.array([-1e30, -1, -0.5, 0, 0.25, 1, 1e30])
    assert bilinear(image, at, np.zeros(7))[:, 0].tolist() == [0, 0, 100, 200, 150, 0, 0]
    assert bilinear(image, np.zeros(7), at)[:, 2].tolist() == [0, 0, 100, 200, 150, 0, 0]
