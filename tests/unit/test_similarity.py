import warnings

import numpy as np
import pytest
import torch

from sdd_ray.core.similarity import EMBEDDING_REASONS, check_embeddings, normalise, products


def test_normalise_matches_float64():
    embeddings = np.random.default_rng(0).normal(0, 40, (50, 33)).astype(np.float32)
    unit, norms = normalise(embeddings)
    exact = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    np.testing.assert_array_equal(norms, exact.astype(np.float32))
    np.testing.assert_array_equal(unit, (embeddings / exact[:, None]).astype(np.float32))
    assert unit.dtype == norms.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_normalise_survives_squares_outside_float32(scale):
    unit, norms = normalise(np.float32([[3 * scale, 4 * scale]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(norms, [5 * scale], rtol=1e-6)


def test_normalise_takes_float16():
    unit, norms = normalise(np.float16([[30000, 40000]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8]], rtol=1e-3)
    assert norms[0] == pytest.approx(50000, rel=1e-3)


def test_check_names_the_reasons():
    rows = [[1, 0], [0, 0], [np.nan, 1], [np.inf, 1], [-np.inf, np.inf], [1e300, 1], [0, 1e-300]]
    codes = check_embeddings(np.array(rows))
    assert [EMBEDDING_REASONS[code] for code in codes] == [
        "",
        "zero_embedding",
        *["non_finite_embedding"] * 4,
        "zero_embedding",
    ]


def test_normalise_refuses_bad_rows():
    with pytest.raises(ValueError, match="finite length above 0, got 2 others among 3"):
        normalise(np.float32([[0, 0], [1, 0], [np.nan, 0]]))


def test_embeddings_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"expected \(N, d\) embeddings, got shape \(3,\)"):
        check_embeddings(np.ones(3, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_match_float64(dtype):
    rng = np.random.default_rng(1)
    rows, columns = rng.normal(size=(7, 33)).astype(dtype), rng.normal(size=(5, 33)).astype(dtype)
    expected = rows.astype(np.float64) @ columns.astype(np.float64).T
    result = products(rows, columns)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=1e-5 if dtype == np.float32 else 1e-12)


def test_products_ignore_alignment_and_threads():
    rng = np.random.default_rng(2)
    rows, columns = rng.normal(size=(64, 128)), rng.normal(size=(100, 128))
    expected = products(rows, columns)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for offset in (1, 3, 5):
            buffer = np.empty(rows.size + offset)
            shifted = buffer[offset:].reshape(rows.shape)
            shifted[:] = rows
            np.testing.assert_array_equal(products(shifted, columns), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_products_take_read_only_arrays_without_a_warning():
    rows = np.eye(3, dtype=np.float32)
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(products(rows, rows), np.eye(3))


def test_products_need_equal_sizes():
    with pytest.raises(ValueError, match=r"expected \(R, d\) and \(C, d\), got \(2, 3\)"):
        products(np.ones((2, 3)), np.ones((2, 4)))
