import warnings

import numpy as np
import pytest
import torch

from sdd_ray.core.similarity import (
    EMBEDDING_REASONS,
    aligned,
    check_embeddings,
    column_products,
    gram_matrices,
    lower_factor,
    normalise,
    products,
    tensor_of,
    usable_rows,
)


def moved(array, offset):
    """Return an equal array that starts so many elements past an aligned address."""
    room = aligned(np.empty(array.size + offset, array.dtype))
    place = room[offset:].reshape(array.shape)
    place[:] = array
    return place


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


@pytest.mark.parametrize("look", [check_embeddings, normalise, usable_rows])
def test_embeddings_must_be_a_matrix(look):
    with pytest.raises(ValueError, match=r"expected \(N, d\) embeddings, got shape \(3,\)"):
        look(np.ones(3, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_usable_rows_are_those_normalised(dtype):
    embeddings = np.random.default_rng(3).normal(size=(700, 5)).astype(dtype)
    unit, faults = usable_rows(embeddings)
    np.testing.assert_array_equal(unit, normalise(embeddings)[0])
    assert not faults.any()
    embeddings[[0, 300]], embeddings[699, 2] = 0, np.inf
    unit, faults = usable_rows(embeddings)
    np.testing.assert_array_equal(faults, check_embeddings(embeddings))
    assert np.flatnonzero(faults).tolist() == [0, 300, 699]
    np.testing.assert_array_equal(unit, normalise(embeddings[faults == 0])[0])


def test_no_row_is_usable_or_there():
    unit, faults = usable_rows(np.zeros((2, 3), np.float32))
    assert (unit.shape, faults.tolist()) == ((0, 3), [1, 1])
    unit, faults = usable_rows(np.zeros((0, 3), np.float32))
    assert (unit.shape, faults.tolist()) == ((0, 3), [])


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


def test_aligned_copies_only_what_is_not():
    array = aligned(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert array.ctypes.data % 64 == 0
    assert aligned(array) is array
    for other in (moved(array, 1), array[:, :2], array.T):
        copy = aligned(other)
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        assert not np.shares_memory(copy, other)
        np.testing.assert_array_equal(copy, other)


def test_tensors_start_where_products_add_up_alike():
    array = aligned(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert tensor_of(array).data_ptr() == array.ctypes.data
    for other in (moved(array, 1), moved(array, 8), array[:, :2], array.T):
        tensor = tensor_of(other)
        assert tensor.data_ptr() % 64 == 0
        np.testing.assert_array_equal(tensor.numpy(), other)


def test_gram_matrices_match_float64_wherever_they_lie():
    rows = np.random.default_rng(4).normal(size=(5, 7, 33)).astype(np.float32)
    exact = rows.astype(np.float64) @ rows.astype(np.float64).transpose(0, 2, 1)
    found = gram_matrices(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=1e-5)
    np.testing.assert_array_equal(gram_matrices(moved(rows, 3)), found)


def test_column_products_match_float64_wherever_they_lie():
    rows = np.random.default_rng(5).normal(size=(90, 33)).astype(np.float32)
    found = column_products(rows)
    np.testing.assert_allclose(found, rows.astype(np.float64).T @ rows, atol=1e-4)
    np.testing.assert_array_equal(column_products(moved(rows, 1)), found)


def test_factor_of_a_positive_matrix_only():
    rows = np.random.default_rng(6).normal(size=(90, 7))
    factor = lower_factor(rows.T @ rows)
    np.testing.assert_array_equal(factor, np.tril(factor))
    np.testing.assert_allclose(factor @ factor.T, rows.T @ rows, rtol=1e-12, atol=1e-12)
    assert lower_factor(np.diag([1.0, -1.0])) is None


def test_threads_are_as_before_after_an_error(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(torch, "mm", None)
        with pytest.raises(TypeError):
            products(np.eye(2), np.eye(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
