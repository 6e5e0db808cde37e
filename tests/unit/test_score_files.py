"""Scores of other programs: separators, `path score` lines, keys that look like numbers, damage."""

import math

import pytest

from sdd_ray.errors import InputError
from sdd_ray.formats.score_files import is_score_file, read_scores

KEYS = ["007", "b c/2.jpg", "ä"]


def read(folder, name, content, key="image_id", column="quality"):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_scores(str(file), key, column)
    return table["key"].to_pylist(), table["score"].to_pylist()


@pytest.mark.parametrize(
    ("name", "mark"), [("q.csv", ","), ("Q.CSV", ";"), ("q.csv", "\t"), ("q.tsv", "\t")]
)
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_tables_of_any_separator(tmp_path, name, mark, start):
    lines = [
        ["quality", "image_id", "quality.scalar"],
        [1, "007", 5],
        [-1, "b c/2.jpg", 6],
        [3, "ä", 7],
    ]
    content = start + "\n".join(mark.join(map(str, line)) for line in lines)
    assert read(tmp_path, name, content) == (KEYS, [1, -1, 3])


def test_names_of_columns_may_be_quoted_and_have_spaces_around_them(tmp_path):
    content = '"a, b", image_id, "quality" ,x\r\n1,007,2,3\r\n'
    assert read(tmp_path, "q.csv", content.replace(', "quality" ', ",quality ")) == (["007"], [2])
    assert read(tmp_path, "r.csv", '"a;b";"image_id";quality\n1;007;2\n') == (["007"], [2])


def test_columns_of_ofiq(tmp_path):
    content = (
        "Filename;UnifiedQualityScore;Sharpness;UnifiedQualityScore.scalar;Sharpness.scalar\n"
        '"/data/a.png";29.0712;1.5;95;80\n/data/b.png;-1;;-1;-1\n'
    )
    found = read(tmp_path, "q.csv", content, "Filename", "UnifiedQualityScore.scalar")
    assert found == (["/data/a.png", "/data/b.png"], [95, -1])
    assert read(tmp_path, "q.csv", content, "Filename", "Sharpness")[1] == [1.5, None]


def test_lines_of_path_and_score(tmp_path):
    keys, scores = read(tmp_path, "q.txt", "007 1\n\nb c/2.jpg\t-2.5e-1 \r\nä nan\n")
    assert keys == KEYS
    assert scores[:2] == [1.0, -0.25]
    assert math.isnan(scores[2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", "a 1\nb\n", r"q\.txt, line 2: expected `path score`, got 'b'"),
        ("q.txt", "a 1\nb good\n", r"line 2: expected `path score`, got 'b good'"),
        ("q.txt", b"\xff\xfe 1\n", r"q\.txt is no text in UTF-8"),
        (
            "q.csv",
            "image_id,score\na,1\n",
            r"expected one column quality; the columns are image_id, sc",
        ),
        (
            "q.csv",
            "name;value\na;1\n",
            r"one column image_id and one quality; the columns are name, v",
        ),
        ("q.csv", "image_id,quality,quality\na,1,2\n", r"expected one column quality"),
        ("q.csv", "image_id,quality\na,1\nb\n", r"q\.csv: .*[Ee]xpected 2 columns"),
        ("q.csv", "", r"expected one column image_id"),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, content)


def test_a_table_without_rows(tmp_path):
    assert read(tmp_path, "q.csv", "image_id,quality\n") == ([], [])


def test_which_files_these_are():
    assert all(is_score_file(path) for path in ("a.csv", "s3://b/A.TXT", "x.tsv"))
    assert not any(is_score_file(path) for path in ("q.parquet", "runs/q"))
