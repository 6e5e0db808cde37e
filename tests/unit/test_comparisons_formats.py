"""Lists of comparisons: what each format means, and the line that is named where one is wrong."""

import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdd_ray.config import load_tree
from sdd_ray.errors import ConfigError, InputError
from sdd_ray.formats import comparisons as formats
from sdd_ray.formats.comparisons import COMPARISONS, digest_of_comparisons, read_comparisons
from sdd_ray.settings import PairsConfig, VerifyConfig


def read(kind, path, **given):
    table = read_comparisons(PairsConfig(kind=kind, path=str(path), **given))
    assert table.schema == COMPARISONS
    return table


def tuples(table):
    return [tuple(row.values()) for row in table.to_pylist()]


def error(kind, path, **given):
    with pytest.raises(InputError) as caught:
        read(kind, path, **given)
    return str(caught.value).removeprefix(str(path))


# LFW


def lfw_lines(num_sets, of_each_kind):
    """Return the lines of a made pairs.txt, and the comparisons that they mean."""
    lines, wanted = [], []
    for fold in range(num_sets):
        for n in range(1, of_each_kind + 1):
            lines.append(f"Abel_{fold}\t{n}\t{n + 10}")
            names = (
                f"Abel_{fold}/Abel_{fold}_{n:04d}.jpg",
                f"Abel_{fold}/Abel_{fold}_{n + 10:04d}.jpg",
            )
            wanted.append((*names, True, fold))
        for n in range(1, of_each_kind + 1):
            lines.append(f"Bo\t{n}\tCy_{fold}\t{1000 + n}")
            wanted.append(
                (f"Bo/Bo_{n:04d}.jpg", f"Cy_{fold}/Cy_{fold}_{1000 + n}.jpg", False, fold)
            )
    return lines, wanted


def write(path, lines, end="\n"):
    path.write_bytes(end.join(lines).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("sets", [(10, 3), (4, 2), (2, 5)])
def test_lfw_with_the_number_of_sets(tmp_path, sets, end):
    lines, wanted = lfw_lines(*sets)
    file = write(tmp_path / "pairs.txt", ["{}\t{}".format(*sets), *lines, ""], end)
    assert tuples(read("lfw", file)) == wanted


@pytest.mark.parametrize("head", [[], ["30"], ["\ufeff1 30"]])
def test_lfw_without_sets_has_ten_folds_in_its_order(tmp_path, head):
    lines, wanted = lfw_lines(1, 30)
    table = read("lfw", write(tmp_path / "pairs.txt", [*head, *lines]))
    assert [row[:3] for row in tuples(table)] == [row[:3] for row in wanted]
    assert table["fold"].to_pylist() == np.repeat(np.arange(10), 6).tolist()


def test_lfw_with_another_pattern(tmp_path):
    lines, _ = lfw_lines(2, 5)
    table = read("lfw", write(tmp_path / "p.txt", lines), image_id="x/{name}-{number}.png")
    assert tuples(table)[5][:2] == ("x/Bo-1.png", "x/Cy_0-1001.png")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Abel 1 2", "Abel 1"], ", line 2: expected `name number number` or"),
        (["Abel 1 2", "", "A 1 B 2 C"], ", line 3: expected `name number number` or"),
        (["Abel 1 two"], ", line 1: expected a number, got 'two'"),
        (["Abel 1 -2"], ", line 1: expected a number, got '-2'"),
        (["Abel 1 ²"], ", line 1: expected a number, got '²'"),
        (["Abel 1 " + "9" * 5000], ", line 1: expected a number, got '9999"),
        (["Abel"], ", line 1: expected a number, got 'Abel'"),
        (["Abel 3 3"], ", line 1: Abel/Abel_0003.jpg is compared with itself"),
        (["A 1 A 1"], ", line 1: A/A_0001.jpg is compared with itself"),
        ([], ": expected at least 10 comparisons, got 0"),
        (["10 300"], ": its first line says 3,000 mated and as many nonmated comparisons"),
        (
            ["2"],
            ": its first line says 2 mated and as many nonmated comparisons, there are 0 and 0",
        ),
        (["A 1 2"] * 9, ": expected at least 10 comparisons, got 9"),
    ],
)
def test_lfw_that_is_damaged(tmp_path, lines, message):
    assert error("lfw", write(tmp_path / "pairs.txt", lines)).startswith(message)


def test_lfw_that_ends_too_early_or_mixes_up_its_kinds(tmp_path):
    lines, _ = lfw_lines(10, 3)
    said = error("lfw", write(tmp_path / "pairs.txt", ["10 3", *lines[:-1]]))
    assert said.startswith(": its first line says 30 mated and as many nonmated comparisons, there")
    assert "there are 30 and 29; is the file whole?" in said
    lines[0] = lines[3]
    assert "there are 29 and 31" in error("lfw", write(tmp_path / "p.txt", ["10 3", *lines]))


@pytest.mark.parametrize("kind", ["lfw", "table", "bin"])
def test_a_list_that_is_not_there(tmp_path, kind):
    assert f"{tmp_path}/none.csv" in error(kind, tmp_path / "none.csv")


@pytest.mark.parametrize("kind", ["lfw", "table"])
def test_a_list_that_is_no_text(tmp_path, kind):
    (tmp_path / "l.csv").write_bytes(b"\xff\xd8\xff\xe0 1 2\n")
    assert error(kind, tmp_path / "l.csv").startswith(" is no text in UTF-8")


# InsightFace


def test_bin(tmp_path, monkeypatch):
    same = np.random.default_rng(0).random(23) < 0.5
    monkeypatch.setattr(formats, "read_bin", lambda place: ([b""] * 46, same))
    table = read("bin", tmp_path / "lfw.bin")
    assert table["mated"].to_pylist() == same.tolist()
    assert table["image_id_a"].to_pylist()[:2] == ["000000", "000002"]
    assert table["image_id_b"].to_pylist()[-1] == "000045"
    assert table["fold"].to_pylist() == sorted([*range(10)] * 2 + [0, 1, 2])
    in_folder = read("bin", tmp_path / "lfw.bin", image_id="lfw.bin/{number:06d}")
    assert tuples(in_folder)[1][:2] == ("lfw.bin/000002", "lfw.bin/000003")


def test_bin_of_insightface(shared_data):
    table = read("bin", shared_data / "formats" / "small_lfw.bin")
    assert table["fold"].to_pylist() == list(range(10))
    assert tuples(table)[9][:2] == ("000018", "000019")


# CFP


def write_cfp(root, people=4, folds=3):
    """Write a made CFP folder; return the comparisons that its parts FF and FP mean."""
    lists = {"F": [], "P": []}
    for person in range(1, people + 1):
        lists["F"] += [f"{person:03d}/frontal/{n:02d}.jpg" for n in range(1, 4)]
        lists["P"] += [f"{person:03d}/profile/{n:02d}.jpg" for n in range(1, 3)]
    for letter, paths in lists.items():
        lines = [f"{n} ../Data/Images/{path}\n" for n, path in enumerate(paths, start=1)]
        (root / f"Pair_list_{letter}.txt").write_text("".join(lines))
    wanted = {"FF": [], "FP": []}
    rng = np.random.default_rng(1)
    for protocol, rows in wanted.items():
        first, second = (lists[letter] for letter in protocol)
        for fold in range(folds):
            folder = root / "Split" / protocol / f"{fold + 1:02d}"
            folder.mkdir(parents=True)
            for name, mated in (("same.txt", True), ("diff.txt", False)):
                drawn = [(int(rng.integers(1, 5)), int(rng.integers(5, 9))) for _ in range(4)]
                # The last line has no end, as in the real files.
                (folder / name).write_text("\n".join(f"{i},{j}" for i, j in drawn))
                rows += [(first[i - 1], second[j - 1], mated, fold) for i, j in drawn]
    return wanted


@pytest.mark.parametrize("protocol", ["FF", "FP"])
def test_cfp(tmp_path, protocol):
    wanted = write_cfp(tmp_path)[protocol]
    assert tuples(read("cfp", tmp_path, protocol=protocol)) == wanted


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Split/FF/02/diff.txt", "1,2\n1;3", "/Split/FF/02/diff.txt, line 2: expected `number,num"),
        (
            "Split/FF/02/diff.txt",
            "1,2,3",
            "/Split/FF/02/diff.txt, line 1: expected `number,number`",
        ),
        ("Split/FF/02/same.txt", "1,", "/Split/FF/02/same.txt, line 1: expected a number, got ''"),
        ("Split/FF/02/same.txt", "1,13", "/Split/FF/02/same.txt, line 1: no picture 13; the list"),
        (
            "Split/FF/02/same.txt",
            "0,1",
            "/Split/FF/02/same.txt, line 1: no picture 0; the list has",
        ),
        (
            "Split/FF/02/same.txt",
            "7,7",
            "/Split/FF/02/same.txt, line 1: 003/frontal/01.jpg is comp",
        ),
        (
            "Pair_list_F.txt",
            "1 a/b/c.jpg\n2 c.jpg",
            "/Pair_list_F.txt, line 2: expected `number pa",
        ),
        (
            "Pair_list_F.txt",
            "one a/b/c.jpg",
            "/Pair_list_F.txt, line 1: expected a number, got 'on",
        ),
        (
            "Pair_list_F.txt",
            "1 a/b/c.jpg\n1 a/b/d.jpg",
            "/Pair_list_F.txt, line 2: number 1 occurs",
        ),
    ],
)
def test_cfp_that_is_damaged(tmp_path, file, text, message):
    write_cfp(tmp_path)
    (tmp_path / file).write_text(text)
    assert error("cfp", tmp_path).startswith(message)


@pytest.mark.parametrize("file", ["Pair_list_F.txt", "Split/FF/03/same.txt"])
def test_cfp_that_lacks_a_file(tmp_path, file):
    write_cfp(tmp_path)
    (tmp_path / file).unlink()
    assert f"{tmp_path}/{file}" in error("cfp", tmp_path)


@pytest.mark.parametrize("protocol", ["FF", "FP"])
def test_cfp_as_it_is_published(shared_data, tmp_path, protocol):
    with tarfile.open(shared_data / "cfp_protocol.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    rows = tuples(read("cfp", tmp_path / "Protocol", protocol=protocol))
    assert len(rows) == 7000
    assert [row[3] for row in rows] == np.repeat(np.arange(10), 700).tolist()
    pose = {"F": "frontal", "P": "profile"}
    for image_a, image_b, mated, _ in rows:
        # Numbers that were read off by one would name other people.
        assert (image_a[:3] == image_b[:3]) is mated
        assert [key.split("/")[1] for key in (image_a, image_b)] == [pose[p] for p in protocol]


# Tables

ROWS = [(f"a/{n}.jpg", f'b "{n}", x.jpg', n % 3 == 0, f"part {n % 4}") for n in range(12)]
NAMES = ["image_id_a", "image_id_b", "mated", "fold"]


def write_csv(path, rows, names=NAMES, delimiter=","):
    def quoted(value):
        return '"' + str(value).replace('"', '""') + '"'

    lines = [delimiter.join(quoted(value) for value in row) for row in [names, *rows]]
    return write(path, [*lines, ""])


def write_parquet(path, rows, names=NAMES):
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path
    )
    return path


def write_table(path, rows, names=NAMES):
    if path.suffix == ".parquet":
        return write_parquet(path, rows, names)
    return write_csv(path, rows, names, "\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
@pytest.mark.parametrize(
    "said", [(True, False), (1, 0), ("1", "0"), ("true", "false"), ("True", "FALSE")]
)
def test_table(tmp_path, suffix, said):
    rows = [(a, b, said[0] if mated else said[1], fold, 3) for a, b, mated, fold in ROWS]
    table = read("table", write_table(tmp_path / f"pairs{suffix}", rows, [*NAMES, "further"]))
    assert tuples(table) == [(a, b, mated, int(fold[-1])) for a, b, mated, fold in ROWS]


def test_table_in_another_order_of_columns(tmp_path):
    rows = [row[::-1] for row in ROWS]
    tables = [
        read("table", write_table(tmp_path / name, rows, NAMES[::-1]))
        for name in ("p.csv", "p.parquet")
    ]
    assert tables[0] == tables[1] == read("table", write_csv(tmp_path / "q.csv", ROWS))


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_table_without_folds_has_ten_in_its_order(tmp_path, name):
    table = read("table", write_table(tmp_path / name, [r[:3] for r in ROWS], NAMES[:3]))
    assert table["fold"].to_pylist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_numbers_as_keys_of_a_parquet_file(tmp_path):
    rows = [(n, 100 + n, n % 2) for n in range(10)]
    assert tuples(read("table", write_parquet(tmp_path / "p.parquet", rows, NAMES[:3])))[3] == (
        "3",
        "103",
        True,
        3,
    )


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize("value", ["2", "yes", "", "1.0", " 1", "None"])
def test_answers_that_are_none(tmp_path, value):
    message = f"mated: expected 0, 1, true or false, got {value!r}"
    said = error("table", write_csv(tmp_path / "p.csv", changed(4, 2, value)))
    assert said == f", line 6: {message}"
    rows = [[*r[:2], str(r[2]), *r[3:]] for r in changed(4, 2, value)]
    assert error("table", write_parquet(tmp_path / "p.parquet", rows)) == f", row 5: {message}"


@pytest.mark.parametrize("value", [2, -1, None, 0.5])
def test_numbers_that_are_no_answer(tmp_path, value):
    rows = [[*r[:2], v if (v := r[2]) is value else value if n == 4 else int(v), *r[3:]]
            for n, r in enumerate(ROWS)]  # fmt: skip
    said = error("table", write_parquet(tmp_path / "p.parquet", rows))
    assert ": mated: expected 0, 1, true or false, got " in said


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (0, 0, "", ", line 2: an image_id is empty"),
        (11, 1, "", ", line 13: an image_id is empty"),
        (3, 1, "a/3.jpg", ", line 5: a/3.jpg is compared with itself"),
    ],
)
def test_keys_that_are_none(tmp_path, row, column, value, message):
    file = write_csv(tmp_path / "p.csv", changed(row, column, value))
    assert error("table", file) == message


def test_a_null_key_of_a_parquet_file(tmp_path):
    file = write_parquet(tmp_path / "p.parquet", changed(7, 0, None))
    assert error("table", file) == ", row 8: an image_id is empty"


@pytest.mark.parametrize("row", [0, 7])
def test_a_row_without_a_fold(tmp_path, row):
    said = error("table", write_csv(tmp_path / "p.csv", changed(row, 3, "")))
    other = 3 if row == 0 else 2
    assert said == f", line {row + 2}: no fold, but {tmp_path}/p.csv, line {other} has one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected one column image_id_a, image_id_b, mated; the columns are "),
        (
            "image_id_a,mated,image_id_c\n",
            ": expected one column image_id_b; the columns are image",
        ),
        (
            "image_id_a,image_id_b,mated,mated\n",
            ": expected one column mated; the columns are imag",
        ),
        ("image_id_a,image_id_b,mated\na,b\n", ", line 2: expected 3 fields, got 2"),
        ("image_id_a,image_id_b,mated\n\na,b,1,1\n", ", line 3: expected 3 fields, got 4"),
        ('image_id_a,image_id_b,mated\na,"b,1\n', ", line 2: unexpected end of data"),
        ('image_id_a,image_id_b,mated\na,"b"c,1\n', ", line 2: ',' expected after '\"'"),
        ("image_id_a,image_id_b,mated\na," + "b" * 140_000, ", line 2: field larger than field"),
        ("image_id_a,image_id_b,mated\n", ": expected at least 10 comparisons, got 0"),
    ],
)
def test_csv_that_is_damaged(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    assert error("table", tmp_path / "p.csv").startswith(message)


def test_lines_are_counted_across_quoted_ones(tmp_path):
    rows = changed(0, 0, "a\nb")
    rows[5][2] = "?"
    said = error("table", write_csv(tmp_path / "p.csv", rows))
    assert said.startswith(", line 8: mated:")


def test_parquet_that_is_damaged(tmp_path):
    file = write_parquet(tmp_path / "p.parquet", ROWS)
    file.write_bytes(file.read_bytes()[:-5])
    assert "is no whole" in (said := error("table", file)) or "not a whole Parquet file" in said
    (tmp_path / "n.parquet").write_bytes(b"")
    assert "not a whole Parquet file" in error("table", tmp_path / "n.parquet")


def test_parquet_of_other_types(tmp_path):
    rows = [([a], b, mated) for a, b, mated, _ in ROWS]
    file = write_parquet(tmp_path / "p.parquet", rows, NAMES[:3])
    assert error("table", file).startswith(": expected text, numbers, true or false")


@pytest.mark.parametrize("name", ["pairs.txt", "pairs", "pairs.parquet.gz"])
def test_tables_of_other_formats(tmp_path, name):
    (tmp_path / name).write_text("image_id_a,image_id_b,mated\n")
    assert error("table", tmp_path / name) == ": expected a file of .parquet, .csv, .tsv"


def test_digest_is_of_what_a_list_says(tmp_path):
    tables = [read("table", write_table(tmp_path / name, ROWS)) for name in ("p.csv", "p.parquet")]
    tables.append(read("table", write_csv(tmp_path / "q.csv", changed(1, 2, True))))
    digests = [digest_of_comparisons(table) for table in tables]
    assert digests[0] == digests[1] != digests[2]


# Options


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"kind": "table", "image_id": "{number}"}, "pairs.image_id does not go with pairs.kind=t"),
        ({"kind": "cfp", "image_id": "{number}"}, "pairs.image_id does not go with pairs.kind=cfp"),
        ({"kind": "bin", "image_id": "lfw"}, "pairs.image_id needs {number}, got lfw"),
        ({"kind": "bin", "image_id": "{name}/{number}"}, "is no pattern: KeyError('name')"),
        ({"kind": "lfw", "image_id": "{name}.jpg"}, "pairs.image_id needs {name} and {number}"),
        ({"kind": "lfw", "image_id": "{number}.jpg"}, "pairs.image_id needs {name} and {number}"),
        ({"kind": "lfw", "image_id": "{name}{number"}, "is no pattern: ValueError"),
        ({"kind": "lfw", "image_id": "{name.x}{number}"}, "is no pattern: AttributeError"),
        ({"kind": "lfw", "image_id": "{}{number}"}, "is no pattern: IndexError"),
        ({"kind": "lfw", "image_id": ""}, "pairs.image_id"),
        ({"kind": "ijb"}, "pairs.kind"),
    ],
)
def test_patterns_that_do_not_fit(pairs, message):
    with pytest.raises(ConfigError) as caught:
        load_tree(VerifyConfig, {"embeddings": "e", "pairs": {"path": "p", **pairs}})
    assert message in str(caught.value)
