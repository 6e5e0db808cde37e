"""Parquet files with images: all column types, few and forward reads, damage, hostile footers."""

import io
import math
import os
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import NAMES, faces_in, faces_of, listed, write_pictures

from sdd_ray.errors import ConfigError, InputError
from sdd_ray.formats import parquet_cells, parquet_file
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Content, Item, from_table
from sdd_ray.formats.parquet import ParquetSource
from sdd_ray.formats.parquet_file import ImageFile
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import ParquetConfig, SourceConfig
from sdd_ray.store.location import Location

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_source(path, rule=None, order="interleaved", **columns):
    options = {"parquet": ParquetConfig(**columns), "landmark_order": order}
    return open_source(SourceConfig(kind="parquet", path=str(path), identity=rule, **options))


@pytest.fixture(autouse=True)
def no_open_files():
    yield
    parquet_cells._waiting.clear()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def wanted(pictures):
    return [(name, *rest) for name, *rest in faces_in(pictures)]


def table_of(pictures, kind=None):
    """Return a table of the pictures, images as Hugging Face's or of another type."""
    names = sorted(NAMES)
    data = [(pictures / name).read_bytes() for name in names]
    hf = [{"bytes": image, "path": name} for image, name in zip(data, names, strict=True)]
    return pa.table(
        {
            "name": names,
            "identity": [name.split("/")[0] for name in names],
            "image": pa.array(hf, HF_IMAGE) if kind is None else pa.array(data, kind),
        }
    )


def write(folder, columns, name="a.parquet", **options):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, folder / name, **options)
    return folder / name


def numbered(num_rows, **more):
    """Return a table whose image of row n says n."""
    images = [b"%06d" % number * 20 for number in range(num_rows)]
    return pa.table({"image": pa.array(images, pa.binary()), **more})


def rejects_of(listing):
    return [(reject.image_id, reject.reason) for reject in listing.rejects]


# Columns


@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_same_as_the_folder(pictures, tmp_path, wanted, kind, row_group_size):
    file = write(tmp_path, table_of(pictures, kind), row_group_size=row_group_size)
    assert faces_of(parquet_source(file, image_id="name")) == wanted


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_images_in_a_dictionary(pictures, tmp_path, wanted, kind, is_struct):
    table = table_of(pictures, kind)
    images = pa.concat_arrays([*table["image"].chunks, pa.array([None], kind)]).dictionary_encode()
    if is_struct:
        images = pa.StructArray.from_arrays([images], ["bytes"])
    names = [*table["name"].to_pylist(), "null"]
    people = [*table["identity"].to_pylist(), "nobody"]
    file = write(tmp_path, {"image": images, "name": names, "identity": people}, row_group_size=3)
    kinds = pq.read_schema(file).field("image").type
    assert pa.types.is_dictionary(kinds.field("bytes").type if is_struct else kinds)
    source = parquet_source(file, image_id="name")
    *items, null = listed(source)[0]
    found = [(i.image_id, i.identity, read_face(source, i).tobytes()) for i in items]
    assert found == wanted
    [error] = source.fetch([null])
    assert error.reason == "empty"


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_other_pages(pictures, tmp_path, wanted, compression):
    options = {"data_page_version": "2.0", "data_page_size": 100, "use_dictionary": ["identity"]}
    encodings = {"column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}
    file = write(tmp_path, table_of(pictures), compression=compression, **options, **encodings)
    assert faces_of(parquet_source(file, image_id="name")) == wanted


def test_keys_in_the_struct_of_the_image(pictures, tmp_path, wanted):
    source = parquet_source(write(tmp_path, table_of(pictures)), image_id="image.path")
    assert faces_of(source) == wanted


def test_rows_without_keys_are_numbered(pictures, tmp_path, wanted):
    file = write(tmp_path, table_of(pictures), row_group_size=2)
    numbers = [(str(row), *rest) for row, (_, *rest) in enumerate(wanted)]
    assert faces_of(parquet_source(file)) == numbers
    assert faces_of(parquet_source(file, "none")) == [(n, None, pixels) for n, _, pixels in numbers]


def test_file_without_rows(tmp_path):
    file = write(tmp_path, numbered(0, identity=pa.array([], pa.string())))
    assert listed(parquet_source(file))[0] == []


@pytest.mark.parametrize("rule", ["first_folder", "parent_folder"])
def test_persons_in_keys(pictures, tmp_path, rule):
    source = parquet_source(write(tmp_path, table_of(pictures)), rule, image_id="name")
    assert faces_of(source) == faces_in(pictures, rule)


def test_folder_of_files(pictures, tmp_path, wanted):
    (tmp_path / "deep").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    table = table_of(pictures)
    write(tmp_path, table[:4], "deep/0.parquet")
    write(tmp_path, table[4:], "deep/1.parquet")
    found = faces_of(parquet_source(tmp_path, "first_folder", image_id="name"))
    assert found == [
        (f"deep/{row // 4}.parquet/{name}", *rest) for row, (name, *rest) in enumerate(wanted)
    ]
    ids = [item.image_id for item in listed(parquet_source(tmp_path))[0]]
    assert ids[3:5] == ["deep/0.parquet/3", "deep/1.parquet/0"]


@pytest.mark.parametrize(
    ("values", "kind", "people"),
    [
        (["a", "ž"], pa.string(), ["a", "ž"]),
        (["a", "b"], pa.large_string(), ["a", "b"]),
        (["a", "b"], pa.string_view(), ["a", "b"]),
        (["a", "b"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        ([-1, 300], pa.int16(), ["-1", "300"]),
        ([2**64 - 1, 0], pa.uint64(), [str(2**64 - 1), "0"]),
        ([7, 8], pa.dictionary(pa.int8(), pa.int64()), ["7", "8"]),
        ([-0.0, 5.0], pa.float64(), ["0", "5"]),
        ([1.0, 2.0**24], pa.float32(), ["1", "16777216"]),
        ([3.0, 2.0**53], pa.float64(), ["3", str(2**53)]),
    ],
)
def test_types_of_persons(tmp_path, values, kind, people):
    file = write(tmp_path, numbered(2, identity=pa.array(values, kind)))
    assert [item.identity for item in listed(parquet_source(file))[0]] == people


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, ""], pa.string()),
        (["a", None, None], pa.dictionary(pa.int8(), pa.string())),
        ([1, None, None], pa.int64()),
        ([1.0, 2.5, math.nan], pa.float64()),
        ([1.0, math.inf, -math.inf], pa.float64()),
        ([1.0, 2.0**24 + 2, None], pa.float32()),
        ([1.0, 2.0**53 + 2, -1e300], pa.float64()),
    ],
)
def test_rows_without_a_person(tmp_path, values, kind):
    items, listing = listed(
        parquet_source(write(tmp_path, numbered(3, identity=pa.array(values, kind))))
    )
    assert [item.image_id for item in items] == ["0"]
    assert rejects_of(listing) == [("1", "no_identity"), ("2", "no_identity")]


@pytest.mark.parametrize("is_dictionary", [False, True])
def test_keys_and_persons_that_are_no_text(tmp_path, is_dictionary):
    texts = pa.array([b"a/1", b"\xff", b"b/1", None, b""]).view(pa.string())
    people = pa.array([b"a", b"b", b"\xfe", b"c", b"d"]).view(pa.string())
    people = people.dictionary_encode() if is_dictionary else people
    file = write(tmp_path, numbered(5, key=texts, identity=people))
    items, listing = listed(parquet_source(file, image_id="key"))
    assert [(item.image_id, item.identity) for item in items] == [("a/1", "a")]
    assert rejects_of(listing) == [
        ("row 1", "no_image_id"),
        ("b/1", "no_identity"),
        ("row 3", "no_image_id"),
        ("row 4", "no_image_id"),
    ]


TEN = [float(n) for n in range(10)]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.int64()), pa.list_(pa.float64(), 10)], ids=str
)
def test_landmarks(tmp_path, kind):
    file = write(tmp_path, numbered(2, points=pa.array([TEN, None], kind)))
    items, _ = listed(parquet_source(file, "none", landmarks="points"))
    assert [item.landmarks for item in items] == [tuple(TEN), None]
    items, _ = listed(parquet_source(file, "none", "split", landmarks="points"))
    assert items[0].landmarks == (0, 5, 1, 6, 2, 7, 3, 8, 4, 9)


@pytest.mark.parametrize(
    "points",
    [
        [],
        TEN[:9],
        [*TEN, 1.0],
        [*TEN[:9], None],
        [*TEN, None],
        [*TEN[:9], math.nan],
        [math.inf, *TEN[:9]],
    ],
)
def test_landmarks_that_are_none(tmp_path, points):
    file = write(tmp_path, numbered(2, points=pa.array([points, TEN], pa.list_(pa.float64()))))
    items, listing = listed(parquet_source(file, "none", landmarks="points"))
    assert [item.image_id for item in items] == ["1"]
    assert rejects_of(listing) == [("0", "bad_landmarks")]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"image": "picture"}, "image=picture: expected a column of binary, .* is not there"),
        ({"image": "name"}, "image=name: .* it holds string"),
        ({"image": "name.bytes"}, "is not there"),
        ({"identity": "image"}, "identity=image: expected a column of texts or numbers"),
        ({"image_id": "weight"}, "image_id=weight: expected .* it holds double"),
        ({"image_id": "image.missing"}, r"image_id=image\.missing: .* it is not there"),
        ({"landmarks": "identity"}, "landmarks=identity: expected a column of lists of numbers"),
        ({"landmarks": "texts"}, "landmarks=texts: .* it holds list"),
        ({"identity": "twice"}, "identity=twice: .* it is not there"),
    ],
)
def test_columns_that_do_not_fit(pictures, tmp_path, columns, text):
    table = table_of(pictures)
    lists = pa.array([["a"]] * len(table))
    table = table.append_column("weight", pa.array([0.5] * len(table)))
    for name in ("texts", "twice", "twice"):
        table = table.append_column(name, lists)
    file = write(tmp_path, table)
    with pytest.raises(InputError, match=text) as error:
        listed(parquet_source(file, "label", **columns))
    assert "columns are name (string), identity (string), image (struct<" in str(error.value)
    assert "a.parquet" in str(error.value)


def test_persons_cannot_be_in_numbers_of_rows(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.parquet\.image_id"):
        parquet_source(write(tmp_path, numbered(1)), "first_folder")


# Cells


def test_cells_that_are_no_images(tmp_path):
    images = [b"", None, b"x" * (MAX_FILE_BYTES + 1), b"good"]
    file = write(tmp_path, {"image": pa.array(images, pa.binary())}, compression="zstd")
    source = parquet_source(file, "none")
    items, _ = listed(source)
    empty, null, large, good = source.fetch(items)
    assert empty == Content(b"")
    assert isinstance(null, ImageRejectedError)
    assert null.reason == "empty"
    assert isinstance(large, ImageRejectedError)
    assert large.reason == "too_large"
    assert good == Content(b"good")


def test_null_struct_is_an_empty_image(tmp_path):
    images = pa.array([None, {"bytes": None, "path": "a"}, {"bytes": b"x", "path": None}], HF_IMAGE)
    source = parquet_source(write(tmp_path, {"image": images}), "none")
    *nulls, good = source.fetch(listed(source)[0])
    assert [null.reason for null in nulls] == ["empty", "empty"]
    assert good == Content(b"x")


def test_image_is_found_by_its_key_or_not(pictures, tmp_path, wanted):
    source = parquet_source(write(tmp_path, table_of(pictures)), image_id="name")
    there, gone = from_table(locate(source, pa.chunked_array([[NAMES[3], "gone"]])))
    pixels = {image_id: pixels for image_id, _, pixels in wanted}
    assert read_face(source, there).tobytes() == pixels[NAMES[3]]
    with pytest.raises(InputError, match="holds no image 'gone'"):
        read_face(source, gone)


def test_files_on_s3(pictures, tmp_path, wanted, s3_bucket):
    file = write(tmp_path, table_of(pictures), row_group_size=2)
    Location(f"s3://{s3_bucket}/sets/a.parquet").write_bytes(file.read_bytes())
    assert faces_of(parquet_source(f"s3://{s3_bucket}/sets/a.parquet", image_id="name")) == wanted
    found = faces_of(parquet_source(f"s3://{s3_bucket}/sets", image_id="name"))
    assert found == [(f"a.parquet/{name}", *rest) for name, *rest in wanted]


def test_source_travels(tmp_path):
    source = parquet_source(write(tmp_path, numbered(1)), "none")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - ours
    assert copy == source
    assert len(pickle.dumps(source)) < 1000


# Reading forwards


def groups_of(items, source):
    groups = source.groups(items)
    assert sorted(place for group in groups for place in group) == list(range(len(items)))
    return [[items[place] for place in group] for group in groups]


def test_groups_are_runs_of_one_file_that_fit_in_memory():
    items = [Item(f"{f}{r}", None, f, r, 1000) for r in reversed(range(300)) for f in ("b", "a")]
    source = ParquetSource(Location(""), None, "none", ParquetConfig(), "interleaved")
    groups = groups_of(items, source)
    assert [(g[0].file, g[0].offset, len(g)) for g in groups] == [
        ("a", 0, 256),
        ("a", 256, 44),
        ("b", 0, 256),
        ("b", 256, 44),
    ]
    # Where the mean size changes another row group begins; small ones are taken together.
    uneven = [items[2 * row]._replace(offset=row, length=1000 + row // 100) for row in range(300)]
    assert [len(group) for group in groups_of(uneven, source)] == [100, 100, 100]
    small = [item._replace(length=1000 + item.offset // 10) for item in uneven]
    assert [len(group) for group in groups_of(small, source)] == [70, 70, 70, 70, 20]
    large = [item._replace(length=10 << 20) for item in items[:10]]
    assert [len(group) for group in groups_of(large, source)] == [3, 2, 3, 2]


@pytest.fixture
def opened_groups(monkeypatch):
    """Row groups whose image column is read from its start, in order, and files opened for it."""
    opened = []
    batches, init = ImageFile.batches, ImageFile.__init__

    def counted(self, column, group, num_rows):
        opened.append(group)
        return batches(self, column, group, num_rows)

    def counted_init(self, place, *, pre_buffer):
        if not pre_buffer:
            opened.append("file")
        init(self, place, pre_buffer=pre_buffer)

    monkeypatch.setattr(ImageFile, "batches", counted)
    monkeypatch.setattr(ImageFile, "__init__", counted_init)
    return opened


def fetched(source, items):
    """Fetch all items group by group; check that each is the image of its row."""
    for group in groups_of(items, source):
        for item, content in zip(group, source.fetch(group), strict=True):
            assert content == Content(b"%06d" % item.offset * 20)


def test_shards_of_one_row_group_are_read_in_one_pass(tmp_path, opened_groups):
    source = parquet_source(write(tmp_path, numbered(3000)), "none")
    items, _ = listed(source)
    for start in range(0, 3000, 700):
        fetched(source, items[start : start + 700])
    assert opened_groups == ["file", 0]


def test_threads_read_a_row_group_once_and_in_order(tmp_path, opened_groups, monkeypatch):
    source = parquet_source(write(tmp_path, numbered(1200)), "none")
    parts = [listed(source)[0][start : start + 100] for start in range(0, 1200, 100)]
    begun, read = [], parquet_cells._Reader.read

    def wait_for(number):
        until = time.monotonic() + 10
        while len(parquet_cells._turns) < number and time.monotonic() < until:
            time.sleep(0.001)

    def noted(self, rows, at_once):
        begun.append(rows[0])
        if len(begun) == 1:
            wait_for(len(parts))
        return read(self, rows, at_once)

    monkeypatch.setattr(parquet_cells._Reader, "read", noted)
    with ThreadPoolExecutor(len(parts)) as threads:
        first = threads.submit(fetched, source, parts[0])
        wait_for(1)
        others = random.Random(0).sample(parts[1:], len(parts) - 1)
        list(threads.map(lambda part: fetched(source, part), others))
    first.result()
    assert begun == list(range(0, 1200, 100))
    assert opened_groups == ["file", 0]


def test_nobody_waits_for_one_who_failed(tmp_path):
    source = parquet_source(write(tmp_path, numbered(1000)), "none")
    items = listed(source)[0]
    (tmp_path / "a.parquet").write_bytes(b"x")
    with ThreadPoolExecutor(8) as threads:
        parts = [items[start : start + 100] for start in range(0, 1000, 100)]
        done = [threads.submit(source.fetch, part) for part in parts]
        assert all(isinstance(one.exception(20), InputError) for one in done)
    assert parquet_cells._turns == []


def test_only_row_groups_that_are_needed_are_read(tmp_path, opened_groups):
    source = parquet_source(write(tmp_path, numbered(1000), row_group_size=100), "none")
    items, _ = listed(source)
    fetched(source, [items[row] for row in (250, 199, 710, 205)])
    assert opened_groups == ["file", 1, 2, 7]


def test_shards_in_exchanged_order_cost_a_second_pass_once(tmp_path, opened_groups):
    source = parquet_source(write(tmp_path, numbered(3000)), "none")
    items, _ = listed(source)
    for shard in (1, 0, 3, 2, 5, 4, 7, 6, 9, 8):
        fetched(source, items[shard * 300 : shard * 300 + 300])
    assert opened_groups == ["file", 0, "file", 0]


def test_rows_in_any_order(tmp_path):
    source = parquet_source(write(tmp_path, numbered(2000), row_group_size=700), "none")
    items, _ = listed(source)
    random.Random(0).shuffle(items)
    for start in range(0, 2000, 33):
        fetched(source, items[start : start + 33])
    assert len(parquet_cells._waiting) <= 8


def test_many_files_do_not_stay_open(tmp_path):
    for number in range(20):
        write(tmp_path, numbered(3), f"{number}.parquet")
    source = parquet_source(tmp_path, "none")
    fetched(source, listed(source)[0])
    assert len(parquet_cells._waiting) == 8


def test_many_threads(tmp_path):
    source = parquet_source(write(tmp_path, numbered(4000), row_group_size=1500), "none")
    items, _ = listed(source)
    with ThreadPoolExecutor(8) as threads:
        parts = [items[start : start + 100] for start in range(0, 4000, 100)]
        list(threads.map(lambda part: fetched(source, part), parts * 3))


@pytest.fixture
def bytes_read(monkeypatch):
    """Numbers of bytes that are read from files, in order."""
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

        def size(self):
            return os.fstat(self.fileno()).st_size

    monkeypatch.setattr(Location, "open", lambda self: Counted(self.uri))
    return read


def test_only_what_is_needed_is_read(tmp_path, bytes_read, monkeypatch):
    rng = np.random.default_rng(0)
    images = pa.array([rng.bytes(10_000) for _ in range(800)], pa.binary())
    columns = {"image": images, "identity": list(range(800))}
    file = write(tmp_path, columns, data_page_size=10_000, write_batch_size=10)
    source = parquet_source(file)
    items, _ = listed(source)
    footer = sum(bytes_read)
    assert 0 < footer < 200_000  # no image
    monkeypatch.setattr(parquet_file, "_BUFFER_BYTES", 50_000)
    assert source.fetch(items[40:50])[0] == Content(images[40].as_py())
    assert sum(bytes_read) < 2 * footer + 3_000_000  # of eight million


# Damage


def test_damaged_footer(tmp_path):
    content = write(tmp_path, numbered(100)).read_bytes()
    for damaged in (content[:-1], content[:50], b"", b"x" * 1000, content[:-30] + content[-8:]):
        (tmp_path / "b.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read .*b\.parquet as a Parquet file"):
            listed(parquet_source(tmp_path / "b.parquet", "none"))


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="nothing is at"):
        parquet_source(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no \*\.parquet file"):
        listed(parquet_source(tmp_path))


def test_damage_costs_the_rest_of_its_row_group(tmp_path):
    options = {"compression": "zstd", "data_page_size": 500, "use_dictionary": False}
    file = write(tmp_path, numbered(1800), row_group_size=600, write_batch_size=10, **options)
    source = parquet_source(file, "none")
    items, _ = listed(source)
    footer = pq.ParquetFile(file).metadata.row_group(1).column(0)
    start = footer.data_page_offset + footer.total_compressed_size * 3 // 4
    content = bytearray(file.read_bytes())
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    found = [content for group in groups_of(items, source) for content in source.fetch(group)]
    lost = [row for row, content in enumerate(found) if isinstance(content, InputError)]
    assert 600 + 256 <= lost[0] < 600 + 450  # what was taken out of its pages before is kept
    assert lost == list(range(lost[0], 1200))
    for row in set(range(1800)) - set(lost):
        assert found[row] == Content(b"%06d" % row * 20)
    assert "a.parquet" in str(found[lost[0]])


def test_file_that_became_shorter(tmp_path):
    source = parquet_source(write(tmp_path, numbered(10)), "none")
    items, _ = listed(source)
    write(tmp_path, numbered(6))
    found = source.fetch(items)
    assert found[:6] == [Content(b"%06d" % row * 20) for row in range(6)]
    assert all("fewer rows than when it was listed" in str(error) for error in found[6:])


def test_footer_that_claims_more_rows_than_bytes(tmp_path):
    # A column of nulls needs no byte a row: what a false footer claims can be written in earnest.
    table = pa.table({"image": pa.nulls(500_000, pa.binary())})
    with pytest.raises(InputError, match="is damaged: it claims 500,000 rows"):
        listed(parquet_source(write(tmp_path, table), "none"))


def test_any_flipped_byte_is_met(tmp_path):
    content = write(tmp_path, numbered(30, identity=list(range(30)))).read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "b.parquet").write_bytes(damaged)
        parquet_cells._waiting.clear()
        source = parquet_source(tmp_path / "b.parquet")
        try:
            items, _ = listed(source)
            found = [source.fetch(group) for group in groups_of(items, source)]
        except InputError:
            continue
        assert all(
            isinstance(c, Content | InputError | ImageRejectedError) for g in found for c in g
        )
