"""Lists of comparisons with similarities and IJB's lists: what they mean, and what is wrong."""

import numpy as np
import pyarrow as pa
import pytest

from sdd_ray.errors import InputError
from sdd_ray.formats.pair_tables import read_ijb, read_scored
from sdd_ray.store.run import parquet_bytes

GOOD = {
    "image_id_a": ["b", "a", "c", "b"],
    "image_id_b": ["a", "c", "b", "d"],
    "mated": [True, False, False, True],
    "similarity": [0.5, 0.25, -0.5, 1.0],
}


def write(folder, **changes):
    file = folder / "pairs.parquet"
    file.write_bytes(parquet_bytes(pa.table({**GOOD, **changes})))
    return str(file)


def test_comparisons_of_parquet(tmp_path):
    found = read_scored(write(tmp_path))
    assert found.ids.to_pylist() == ["a", "b", "c", "d"]
    ends = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert ends == [(0, 1), (0, 2), (1, 2), (1, 3)]
    assert found.mated.tolist() == GOOD["mated"]
    assert found.similarities.tolist() == GOOD["similarity"]
    assert found.repeated == 0


@pytest.mark.parametrize("yes", ["1", "true", "True"])
def test_csv_is_the_same_as_parquet(tmp_path, yes):
    no = {"1": "0", "true": "false", "True": "False"}[yes]
    rows = zip(*(GOOD[name] for name in GOOD), strict=True)
    lines = ["image_id_b,image_id_a,mated,similarity,more"]
    lines += [f"{b},{a},{yes if m else no},{s},x" for a, b, m, s in rows]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(lines))
    one, other = read_scored(str(file)), read_scored(write(tmp_path))
    for name in ("first", "second", "mated", "similarities"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.ids.equals(other.ids)


def test_names_that_look_like_numbers_stay_names(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("image_id_a,image_id_b,mated,similarity\n007,7,1,0.5\n7,08,0,0\n")
    assert read_scored(str(file)).ids.to_pylist() == ["007", "08", "7"]


def test_other_types_of_other_programs(tmp_path):
    path = write(
        tmp_path,
        image_id_a=pa.array(GOOD["image_id_a"], pa.large_string()),
        image_id_b=pa.array(GOOD["image_id_b"]).dictionary_encode(),
        mated=pa.array([1, 0, 0, 1], pa.uint8()),
        similarity=pa.array(GOOD["similarity"], pa.float64()),
    )
    assert read_scored(path).mated.tolist() == GOOD["mated"]


def test_a_comparison_that_stands_there_again_is_counted_once(tmp_path):
    path = write(
        tmp_path,
        image_id_a=["b", "a", "c", "a"],
        image_id_b=["a", "c", "b", "b"],
        similarity=[0.5, 0.25, -0.5, 0.5],
    )
    found = read_scored(path)
    assert found.repeated == 1
    assert found.similarities.tolist() == [0.5, 0.25, -0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id_a": ["b", "a", "c", None]}, "1 comparisons are without a name of an image"),
        ({"image_id_a": ["b", "a", "c", ""]}, "1 comparisons are without a name of an image"),
        ({"image_id_a": ["b", "a", "c", "d"]}, "1 comparisons of an image with itself, first d"),
        ({"similarity": [0.5, None, 1, 2]}, "1 similarities are missing or not finite"),
        ({"similarity": [0.5, np.inf, np.nan, 2]}, "2 similarities are missing or not finite"),
        ({"mated": [True, None, False, True]}, "1 comparisons say not whether mated"),
        ({"mated": [1, -1, -1, 1]}, "mated is 1 or 0, got -1"),
        ({"mated": [1.0, 0.0, 2.0, None]}, "mated is 1 or 0, got 2"),
        (
            {"mated": ["yes", "no", "no", "no"]},
            "expected image_id_a, image_id_b, mated, similarity",
        ),
        (
            {"similarity": ["a", "b", "c", "d"]},
            "expected image_id_a, image_id_b, mated, similarity",
        ),
        (
            {"image_id_b": ["a", "c", "b", "a"]},
            "a and b are compared twice, with another value of similarity",
        ),
        (
            {"image_id_b": ["a", "c", "b", "a"], "mated": [True, False, False, False]},
            "a and b are compared twice, with another value of mated",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_scored(write(tmp_path, **changes))


def test_columns_that_are_missing(tmp_path):
    file = tmp_path / "p.parquet"
    file.write_bytes(parquet_bytes(pa.table({"image_id_a": ["a"], "image_id_b": ["b"]})))
    with pytest.raises(InputError, match="no column mated, similarity"):
        read_scored(str(file))
    text = tmp_path / "p.csv"
    text.write_text("image_id_a,image_id_b,mated\na,b,1\n")
    with pytest.raises(InputError, match="similarity"):
        read_scored(str(text))


def ijb(folder, images="1.jpg 10 1\n2.jpg 10 1\n3.jpg 9 5\n4.jpg 8 1\n5.jpg 77 1\n", pairs=None):
    (folder / "tid_mid.txt").write_text(images)
    (folder / "pairs.txt").write_text(pairs or "10 9 1\n8 10 0\n8 9 0\n")
    return read_ijb(str(folder / "tid_mid.txt"), str(folder / "pairs.txt"))


def test_ijb_lists(tmp_path):
    found = ijb(tmp_path)
    assert found.pairs.ids.to_pylist() == ["10", "8", "9"]
    assert found.image_ids.to_pylist() == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert found.templates.tolist() == [0, 0, 2, 1]
    assert found.media.tolist() == [1, 1, 5, 1]
    ends = zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True)
    assert list(ends) == [(0, 2), (0, 1), (1, 2)]
    assert found.pairs.mated.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "10 9 1\n8 10 2\n"}, r"pairs\.txt: expected labels 0 and 1, got 2"),
        ({"pairs": "10 9\n"}, r"pairs\.txt: expected 3 words a line"),
        (
            {"pairs": "10 9 1\n8 6 0\n5 9 0\n"},
            r"tid_mid\.txt: 2 templates of .*pairs\.txt have no im",
        ),
        ({"images": "1.jpg ten 1\n"}, r"tid_mid\.txt: expected 3 words a line"),
    ],
)
def test_damaged_ijb_lists(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ijb(tmp_path, **changes)
