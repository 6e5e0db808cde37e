"""The best images of groups against the plain definition, in any cut into parts."""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from sdd_ray import columns
from sdd_ray.engine.best_images import best_of_groups, write_best
from sdd_ray.engine.qualities import read_qualities
from sdd_ray.errors import InputError
from sdd_ray.settings import BestConfig, MethodConfig
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import parquet_bytes, write_part
from sdd_ray.store.score_tables import lines, writer
from sdd_ray.store.summary import csv_bytes, write_tables

IMAGES = 60


@pytest.fixture
def rows():
    """Qualities with ties and failures, of images whose tracks are known or not."""
    generator = np.random.default_rng(2)
    raw = generator.integers(0, 8, IMAGES).astype(np.float32)
    raw[generator.random(IMAGES) < 0.1] = np.nan
    ids = [f'{n:02d} ,;"é.jpg' for n in generator.permutation(IMAGES)]
    quality = np.where(np.isnan(raw), -1, raw).astype(np.int8)
    reasons = [None if known else "empty" for known in ~np.isnan(raw)]
    values = [ids, quality, pa.array(raw, pa.float32(), from_pandas=True), reasons]
    tracks = [None if n % 7 == 0 else f"t{n % 5}" for n in range(IMAGES)]
    return pa.table(values, schema=columns.QUALITIES), tracks


def by_hand(table, tracks, count):
    groups = {}
    for row, track in zip(table.to_pylist(), tracks, strict=True):
        if row["raw"] is not None and track is not None:
            groups.setdefault(track, []).append((-row["raw"], row["image_id"]))
    return [
        (group, rank, name)
        for group, found in sorted(groups.items())
        for rank, (_, name) in enumerate(sorted(found)[:count], 1)
    ]


def written(table, folder, size):
    place = Location(str(folder))
    cuts = range(0, IMAGES, size)
    parts = [table.slice(start, size) for start in cuts]
    return place, [write_part(place, f"part-{n:06d}", part) for n, part in enumerate(parts)]


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("size", [7, IMAGES])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_best_of_each_track(rows, tmp_path, count, size, suffix):
    table, tracks = rows
    place, records = written(table, tmp_path / "out", size)
    named = pa.table({"image_id": table["image_id"], "track": tracks})
    file = tmp_path / f"tracks.{suffix}"
    if suffix == "csv":
        pa_csv.write_csv(named.filter(named["track"].is_valid()), str(file))
    else:
        file.write_bytes(parquet_bytes(named))
    config = BestConfig(count=count, groups=str(file))
    assert write_best(config, place, records) == 5
    best = read_parquet(place / "best.parquet")
    assert best.column_names == ["track", "rank", "image_id", "quality", "raw"]
    shown = [best[name].to_pylist() for name in ("track", "rank", "image_id")]
    assert list(zip(*shown, strict=True)) == by_hand(table, tracks, count)
    again = pa_csv.read_csv(str(tmp_path / "out" / "best.csv"))
    assert again["image_id"].to_pylist() == best["image_id"].to_pylist()


def test_nothing_to_choose_from(rows, tmp_path):
    table, _ = rows
    place, records = written(table, tmp_path / "out", IMAGES)
    file = tmp_path / "tracks.csv"
    file.write_text("image_id,track\nother,1\n")
    with pytest.raises(
        InputError, match=r"no scored image has a group in .*tracks\.csv, column tr"
    ):
        write_best(BestConfig(groups=str(file)), place, records)
    with pytest.raises(InputError, match="other"):
        write_best(BestConfig(groups=str(file), column="other"), place, records)
    file.write_text("image_id,track\na,1\na,2\n")
    with pytest.raises(InputError, match="image_id has a value more than once"):
        write_best(BestConfig(groups=str(file)), place, records)
    with pytest.raises(ValueError, match="expected to choose at least 1 image"):
        best_of_groups(table, "reason", 0)


@pytest.mark.parametrize("form", ["csv", "ofiq", "text"])
@pytest.mark.parametrize("several", [False, True])
def test_tables_are_read_by_evaluate(rows, tmp_path, monkeypatch, form, several):
    table, _ = rows
    if several:
        monkeypatch.setattr("sdd_ray.store.summary._ROWS_A_FILE", 25)
    place, records = written(table, tmp_path / "out", 10)
    name = "q.txt" if form == "text" else "q.csv"
    write_tables(place, records, name, writer(form))
    stem, suffix = name.split(".")
    names = [f"{stem}-{n:06d}.{suffix}" for n in range(3)] if several else [name]
    assert sorted(n for n in place.names() if n.startswith("q")) == names
    key = {
        "csv": {"column": "raw"},
        "ofiq": {"key": "Filename", "column": "UnifiedQualityScore"},
        "text": {},
    }[form]
    known = table["raw"].to_pylist()
    ids = table["image_id"].to_pylist()
    found = np.full(IMAGES, np.nan)
    for file in names:
        method = MethodConfig(name="m", path=str(tmp_path / "out" / file), **key)
        values = read_qualities(method, ids).values
        found = np.where(np.isnan(found), values, found)
    wanted = [np.nan if value is None else value for value in known]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("form", ["csv", "ofiq", "text"])
def test_lines_are_those_of_the_files(rows, form):
    table = rows[0].append_column("accepted", pa.array([True, False] * (IMAGES // 2)))
    plain = [
        row
        | {"raw": row["raw"] and np.float32(row["raw"]), "accepted": str(row["accepted"]).lower()}
        for row in table.to_pylist()
    ]
    found = lines(form, plain[:9], header=True) + lines(form, plain[9:], header=False)
    whole = writer(form)(table)
    if form == "text":
        assert found == whole
        return
    delimiter = ";" if form == "ofiq" else ","
    one, other = (
        list(csv.reader(io.StringIO(content.decode()), delimiter=delimiter))
        for content in (found, whole)
    )
    raw = one[0].index("raw" if form == "csv" else "UnifiedQualityScore")
    assert one[0] == other[0]
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        assert float(mine[raw] or "nan") == pytest.approx(float(theirs[raw] or "nan"), nan_ok=True)
        assert mine[:raw] + mine[raw + 1 :] == theirs[:raw] + theirs[raw + 1 :]


def test_only_what_needs_quotes_gets_them():
    plain = pa.table({"image_id": ["a/b.jpg"], "quality": [3]})
    assert csv_bytes(plain) == b"image_id,quality\na/b.jpg,3\n"
    needy = pa.table({"image_id": ["a,b.jpg"], "quality": [3]})
    assert csv_bytes(needy) == b'image_id,quality\n"a,b.jpg",3\n'
    assert csv_bytes(needy, ";", header=False) == b"a,b.jpg;3\n"
