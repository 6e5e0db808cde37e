"""RecordIO files, written here by the specification: keys, labels, split records, damage."""

import io
import pickle
import shutil
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import contents_of as read
from pictures import fetched, listed
from PIL import Image

from sdd_ray.errors import ConfigError, InputError
from sdd_ray.formats import recordio_parts
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import MAX_FILE_BYTES, Listing, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import RecordIOConfig, SourceConfig
from sdd_ray.store.location import Location

MAGIC = bytes.fromhex("0a23d7ce")
IMAGE = bytes(range(90))


def part(cflag, data, length=None):
    length = len(data) if length is None else length
    return MAGIC + struct.pack("<I", cflag << 29 | length) + data + bytes(-len(data) % 4)


def record(data):
    """Return the data as the writer packs them: a magic number in an aligned place is taken out."""
    pieces, begin = [], 0
    for at in range(0, len(data) // 4 * 4, 4):
        if data[at : at + 4] == MAGIC:
            pieces.append(data[begin:at])
            begin = at + 4
    pieces.append(data[begin:])
    if len(pieces) == 1:
        return part(0, data)
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(flag, piece) for flag, piece in zip(flags, pieces, strict=True))


def data_of(label, image, key=0):
    if isinstance(label, list):
        return struct.pack(f"<IfQQ{len(label)}f", len(label), 0, key, 0, *label) + image
    return struct.pack("<IfQQ", 0, label, key, 0) + image


def write(folder, records, index=True, name="train"):
    """Write records (key, label, image) and return the offset of each."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = [record(data_of(label, image, key)) for key, label, image in records]
    offsets = np.cumsum([0, *map(len, packed)])[:-1].tolist()
    (folder / f"{name}.rec").write_bytes(b"".join(packed))
    if index:
        write_index(folder, [key for key, _, _ in records], offsets, name)
    return offsets


def write_index(folder, keys, offsets, name="train"):
    lines = (f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))
    (folder / f"{name}.idx").write_text("".join(lines))


def source(path, identity=None, **options):
    config = RecordIOConfig(**options)
    kind = SourceConfig(kind="recordio", path=str(path), identity=identity, recordio=config)
    return open_source(kind)


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


THREE = [(4, 17.0, b"a" * 41), (2, [3.0, 9.0], b"b" * 100), (9, 17.0, b"c" * 60)]
READ = [("4", "17", b"a" * 41), ("2", "3", b"b" * 100), ("9", "17", b"c" * 60)]


@pytest.mark.parametrize("index", [True, False])
def test_images_with_their_keys_and_labels(tmp_path, index):
    write(tmp_path, THREE, index)
    assert read(source(tmp_path / "train.rec")) == READ


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_index_in_any_order_is_listed_as_the_images_lie(tmp_path, order):
    offsets = write(tmp_path, THREE)
    write_index(tmp_path, [THREE[i][0] for i in order], [offsets[i] for i in order])
    assert read(source(tmp_path / "train.rec")) == READ


def test_index_may_leave_records_out_and_name_one_twice(tmp_path):
    offsets = write(tmp_path, THREE)
    write_index(tmp_path, [4, 5, 9], [offsets[0], offsets[0], offsets[2]])
    wanted = [READ[0], ("5", *READ[0][1:]), READ[2]]
    assert read(source(tmp_path / "train.rec")) == wanted


def test_gap_in_the_index_is_not_read_as_a_whole(tmp_path):
    write(tmp_path, THREE)
    with (tmp_path / "train.rec").open("ab") as stream:
        stream.truncate(10**10)  # a sparse file: nothing of it lies on the disk
    items, _ = listed(source(tmp_path / "train.rec"))
    assert items[2].length == MAX_FILE_BYTES
    images = source(tmp_path / "train.rec")
    assert [found.data for found in fetched(images, items)] == [image for _, _, image in THREE]


def test_keys_without_an_index_are_ids_or_numbers(tmp_path):
    write(tmp_path, THREE, index=False)
    path = tmp_path / "train.rec"
    for keys, wanted in (("id", ["4", "2", "9"]), ("number", ["0", "1", "2"])):
        assert [item.image_id for item in listed(source(path, keys=keys))[0]] == wanted


@pytest.mark.parametrize("index", [True, False])
def test_insightface_set(tmp_path, index):
    # Record 0 and those of the persons hold ranges of keys and no image; the ranges here are wrong,
    # as float32 makes them in large sets.
    images = [(key, [label, 0.0], picture(key)) for key, label in ((1, 5), (2, 5), (3, 6))]
    ranges = [(4, [2.0, 4.0], b""), (5, [1.0, 1.0], b"")]
    write(tmp_path, [(0, [4.0, 6.0], b""), *images, *ranges], index)
    images = source(tmp_path / "train.rec")
    items, listing = listed(images)
    assert [item.image_id for item in items] == ["1", "2", "3"]
    assert listing == Listing([], 3)
    assert [content.identity for content in fetched(images, items)] == ["5", "5", "6"]


def test_shortest_image_is_one(tmp_path):
    smallest = b"P4 8 8\n" + bytes(8)
    write(tmp_path, [(1, 1.0, smallest), (2, 1.0, b"x" * 8), (3, 1.0, b"")])
    items, listing = listed(source(tmp_path / "train.rec"))
    assert [item.image_id for item in items] == ["1"]
    assert listing.ignored_files == 2


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    "image",
    [
        IMAGE[:40] + MAGIC + IMAGE[44:],
        MAGIC + IMAGE,
        MAGIC * 3 + IMAGE + MAGIC,
        IMAGE[:40] + MAGIC * 2,
        IMAGE[:41] + MAGIC + IMAGE,  # in no aligned place: left where it is
    ],
    ids=["inside", "first", "many", "last", "unaligned"],
)
def test_split_records(tmp_path, image, index):
    write(tmp_path, [(1, 1.0, IMAGE), (2, [2.0], image), (3, 3.0, IMAGE)], index)
    wanted = [("1", "1", IMAGE), ("2", "2", image), ("3", "3", IMAGE)]
    assert read(source(tmp_path / "train.rec")) == wanted


WORDS = st.lists(st.sampled_from([MAGIC, MAGIC[:3], b"\xff\xd8\xff\xe0", b"x"]), max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(24, 200))
def test_whatever_was_written_is_read(tmp_path_factory, words, at_once):
    images = [IMAGE + b"".join(image) for image in words]
    folder = tmp_path_factory.mktemp("set")
    write(folder, [(key, 1.0, image) for key, image in enumerate(images)], index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordio_parts, "_READ_AT_ONCE", at_once)  # records across its ends
        found = source(folder / "train.rec")
        assert read(found) == [(str(key), "1", image) for key, image in enumerate(images)]


@pytest.mark.parametrize(
    ("label", "identity"),
    [(17.0, "17"), (0.0, "0"), (-0.0, "0"), (-1.0, "-1"), (16777216.0, "16777216"), ([5.0], "5")],
)
def test_labels_are_whole_numbers(tmp_path, label, identity):
    write(tmp_path, [(1, label, IMAGE)])
    assert read(source(tmp_path / "train.rec")) == [("1", identity, IMAGE)]


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 1.5, [float("nan"), 1.0]])
def test_labels_that_name_no_person(tmp_path, label):
    write(tmp_path, [(1, label, IMAGE)])
    images = source(tmp_path / "train.rec")
    [found] = fetched(images, listed(images)[0])
    assert isinstance(found, ImageRejectedError)
    assert found.reason == "no_identity"
    assert repr(label[0] if isinstance(label, list) else label) in found.detail
    images = source(tmp_path / "train.rec", "none")
    assert read(images) == [("1", None, IMAGE)]


def test_names_of_a_list(tmp_path):
    write(tmp_path, THREE)
    (tmp_path / "train.lst").write_text(
        "9\t1\t0\tp/sub/9.jpg\n4\t1\t0\tq/ä 4.jpg\n\n2\t1\t0\t2.jpg"
    )
    named = {"names": str(tmp_path / "train.lst")}
    path = tmp_path / "train.rec"
    assert [entry[:2] for entry in read(source(path, **named))] == [
        ("q/ä 4.jpg", "17"),
        ("2.jpg", "3"),
        ("p/sub/9.jpg", "17"),
    ]
    for rule, last in (("first_folder", "p"), ("parent_folder", "p/sub")):
        items, listing = listed(source(path, rule, **named))
        assert [(item.image_id, item.identity) for item in items] == [
            ("q/ä 4.jpg", "q"),
            ("p/sub/9.jpg", last),
        ]
        assert [(r.image_id, r.reason) for r in listing.rejects] == [("2.jpg", "no_identity")]


@pytest.mark.parametrize("lines", ["", "2\t0\tx.jpg\n9\t0\ty.jpg\n", "4\t0\tx.jpg\n2\t0\ty.jpg\n"])
def test_keys_that_the_list_does_not_name(tmp_path, lines):
    write(tmp_path, THREE)
    (tmp_path / "train.lst").write_text(lines)
    items, listing = listed(source(tmp_path / "train.rec", names=str(tmp_path / "train.lst")))
    named = 2 if lines else 0
    assert len(items) == named
    assert {reject.reason for reject in listing.rejects} == {"not_in_list"}
    assert len(listing.rejects) == 3 - named


def test_one_list_does_not_name_two_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, THREE, name=name)
    with pytest.raises(ConfigError, match=r"source\.recordio\.names: .* holds 2"):
        source(tmp_path, names=str(tmp_path / "train.lst"))


@pytest.mark.parametrize("index", [True, False])
def test_folder_of_files(tmp_path, index):
    write(tmp_path / "sub", THREE[:1], index, name="b")
    write(tmp_path, THREE[1:], index, name="a")
    images = source(tmp_path)
    assert images.files() == ["a.rec", "sub/b.rec"]
    assert [entry[0] for entry in read(images)] == ["a.rec/2", "a.rec/9", "sub/b.rec/4"]


def test_real_im2rec_sample_equals_the_folder_it_was_made_from(shared_data, tmp_path):
    with tarfile.open(shared_data / "formats/im2rec_sample.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    rows = [line.split("\t") for line in (tmp_path / "train.lst").read_text().splitlines()]
    for _, _, path in rows:
        place = tmp_path / "faces" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "tmp" / place.name, place)
    labels = {path: (key, str(int(float(label)))) for key, label, path in rows}
    folder = open_source(SourceConfig(kind="folder", path=str(tmp_path / "faces")))
    wanted = {item.image_id: (item.identity, read_face(folder, item)) for item in listed(folder)[0]}
    assert len(wanted) == 8
    for index in ("with", "without"):
        if index == "without":
            (tmp_path / "train.idx").unlink()
        path, lst = tmp_path / "train.rec", str(tmp_path / "train.lst")
        named = source(path, "first_folder", names=lst)
        items = listed(named)[0]
        assert {item.image_id: item.identity for item in items} == {
            k: v[0] for k, v in wanted.items()
        }
        for item in items:
            assert np.array_equal(read_face(named, item), wanted[item.image_id][1])
        by_key = {entry[0]: entry[1:] for entry in read(source(path))}
        for image_id, (key, label) in labels.items():
            assert by_key[key] == (label, (tmp_path / "faces" / image_id).read_bytes())


def test_index_beyond_the_end(tmp_path):
    offsets = write(tmp_path, THREE)
    write_index(tmp_path, [4, 2, 9, 7, 8], [*offsets, 10**6, 2**63])
    images = source(tmp_path / "train.rec")
    items, listing = listed(images)
    assert [item.image_id for item in items] == ["4", "2", "9"]
    assert [(r.image_id, r.reason) for r in listing.rejects] == [
        ("7", "damaged_record"),
        ("8", "damaged_record"),
    ]
    assert "byte 1,000,000" in listing.rejects[0].detail
    assert [found.data for found in fetched(images, items)] == [image for _, _, image in THREE]


@pytest.mark.parametrize("kept", [0, 4, 8, 30, 60, 91])
def test_truncated_file_with_an_index(tmp_path, kept):
    offsets = write(tmp_path, THREE)
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[: offsets[2] + kept])
    images = source(tmp_path / "train.rec")
    items, listing = listed(images)
    found = fetched(images, items)
    assert [content.data for content in found[:2]] == [image for _, _, image in THREE[:2]]
    # What is left of the last is too short for an image, or the index leads beyond the end.
    lost = [error.reason for error in found[2:]] + [reject.reason for reject in listing.rejects]
    assert lost + ["damaged_record"] * listing.ignored_files == ["damaged_record"]


@pytest.mark.parametrize("kept", [1, 4, 8, 30, 60])
@pytest.mark.parametrize("last", [b"c" * 60, IMAGE[:40] + MAGIC + IMAGE])
def test_truncated_file_without_an_index(tmp_path, kept, last):
    offsets = write(tmp_path, [*THREE[:2], (9, 17.0, last)], index=False)
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[: offsets[2] + kept])
    items, listing = listed(source(tmp_path / "train.rec"))
    assert [item.image_id for item in items] == ["4", "2"]
    [reject] = listing.rejects
    place = f"train.rec from byte {offsets[2]}"
    assert (reject.image_id, reject.reason) == (place, "damaged_record")
    assert f"from byte {offsets[2]} to {offsets[2] + kept} can be used" in reject.detail


def test_split_record_that_lacks_its_end(tmp_path):
    write(tmp_path, THREE, index=False)
    with (tmp_path / "train.rec").open("ab") as stream:
        stream.write(part(1, data_of(1.0, IMAGE[:40])))
    items, listing = listed(source(tmp_path / "train.rec"))
    assert len(items) == 3
    assert [reject.reason for reject in listing.rejects] == ["damaged_record"]


def test_length_of_gigabytes(tmp_path):
    write(tmp_path, THREE, index=False)
    path = tmp_path / "train.rec"
    begin = path.stat().st_size
    path.write_bytes(path.read_bytes() + part(0, data_of(1.0, IMAGE), length=2**29 - 1))
    items, listing = listed(source(path))
    assert len(items) == 3
    assert f"byte {begin} " in listing.rejects[0].detail
    write_index(tmp_path, [1], [begin])
    images = source(path)
    [found] = fetched(images, listed(images)[0])
    assert found.reason == "too_large"


def damage(path, at, value):
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "value", "shown"),
    [(0, b"x", "0xced72378"), (4, struct.pack("<I", 3 << 29 | 50), "cflag 3")],
)
@pytest.mark.parametrize("number", [0, 1])
def test_damaged_header(tmp_path, at, value, shown, number):
    offsets = write(tmp_path, THREE, index=True)
    path = tmp_path / "train.rec"
    damage(path, offsets[number] + at, value)
    images = source(path)
    found = fetched(images, listed(images)[0])
    assert [isinstance(content, ImageRejectedError) for content in found] == [
        place == number for place in range(3)
    ]
    assert found[number].reason == "damaged_record"
    assert shown in found[number].detail
    assert f"byte {offsets[number]} of train.rec" in found[number].detail
    (tmp_path / "train.idx").unlink()
    assert read(images) == READ[:number] + READ[number + 1 :]
    [reject] = listed(images)[1].rejects
    assert (reject.image_id, reject.reason) == (
        f"train.rec from byte {offsets[number]}",
        "damaged_record",
    )
    assert f"from byte {offsets[number]} to {offsets[number + 1]} can" in reject.detail
    assert shown in reject.detail


@pytest.mark.parametrize("length", [0, 4, 64, 65, 200, 400, 2**29 - 1])
def test_damaged_length(tmp_path, length):
    images = [(key, 1.0, bytes([key]) * 60) for key in range(1, 8)]
    offsets = write(tmp_path, images, index=False)
    path = tmp_path / "train.rec"
    damage(path, offsets[2] + 4, struct.pack("<I", length))
    items, listing = listed(source(path))
    # A record that is too short in its header is kept, for its image to be looked at.
    kept = [item.image_id for item in items if item.image_id != "3"]
    assert kept == ["1", "2", "4", "5", "6", "7"]
    assert ("3" in [item.image_id for item in items]) == (length in (64, 65))
    [reject] = listing.rejects
    assert f"to {offsets[3]} can" in reject.detail


def test_parts_of_a_split_record_that_are_lost(tmp_path):
    split = record(data_of(1.0, MAGIC + IMAGE[:88] + MAGIC * 2, 8))
    whole = record(data_of(1.0, IMAGE, 7))
    path = tmp_path / "train.rec"
    for part_number in range(4):
        at = [n for n in range(len(split)) if split[n : n + 4] == MAGIC][part_number]
        damaged = split[:at] + b"xxxx" + split[at + 4 :]
        path.write_bytes(whole + damaged + whole)
        items, listing = listed(source(path))
        assert [item.offset for item in items] == [0, len(whole) + len(split)]
        assert [content.data for content in fetched(source(path), items)] == [IMAGE, IMAGE]
        [reject] = listing.rejects
        assert f"from byte {len(whole)} to {len(whole + split)} can" in reject.detail


def test_numbers_of_records_are_not_guessed_behind_damage(tmp_path):
    offsets = write(tmp_path, THREE, index=False)
    path = tmp_path / "train.rec"
    damage(path, offsets[1], b"x")
    items, listing = listed(source(path, keys="number"))
    assert [item.image_id for item in items] == ["0"]
    [reject] = listing.rejects
    assert f"from byte {offsets[1]} to {path.stat().st_size} can" in reject.detail


@given(st.data())
def test_damage_costs_what_it_touches(tmp_path_factory, data):
    images = [IMAGE + bytes([n]) * 30 for n in range(6)]
    folder = tmp_path_factory.mktemp("set")
    records = [(key, 1.0, image) for key, image in enumerate(images)]
    offsets = [*write(folder, records, index=False), (folder / "train.rec").stat().st_size]
    start = data.draw(st.integers(0, offsets[-1] - 1))
    value = data.draw(st.binary(min_size=1, max_size=300))[: offsets[-1] - start]
    damage(folder / "train.rec", start, value)
    hit = {n for n in range(6) if offsets[n] < start + len(value) and start < offsets[n + 1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordio_parts, "_SEARCHED_AT_ONCE", data.draw(st.integers(8, 100)))
        patch.setattr(recordio_parts, "_READ_AT_ONCE", data.draw(st.integers(100, 1000)))
        found = source(folder / "train.rec")
        if hit != set(range(6)):
            ids = {item.offset: item for item in listed(found)[0]}
            assert {offsets[n] for n in set(range(6)) - hit} <= set(ids)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern", [MAGIC, part(1, b""), part(0, b"") + b"xxxx", part(0, b"", 2**20), part(0, b"", 12)]
)
def test_hostile_files_are_walked_in_bounded_time(tmp_path, pattern):
    path = tmp_path / "train.rec"
    path.write_bytes(part(0, data_of(1.0, IMAGE)) + pattern * (4_000_000 // len(pattern)))
    items, listing = listed(source(path))
    assert items[0].offset == 0
    assert 1 <= len(listing.rejects) <= 257


def test_parts_of_a_split_record_in_the_wrong_order(tmp_path):
    path = tmp_path / "train.rec"
    path.write_bytes(part(1, data_of(1.0, IMAGE)) + part(0, IMAGE))
    [reject] = listed(source(path))[1].rejects
    assert "cflag 2 or 3" in reject.detail
    write_index(tmp_path, [1], [0])
    images = source(path)
    [found] = fetched(images, listed(images)[0])
    assert found.reason == "damaged_record"


@pytest.mark.parametrize(
    "data", [b"", IMAGE[:23], struct.pack("<IfQQ", 10**9, 0, 1, 0) + IMAGE, IMAGE[:20] + MAGIC]
)
def test_data_that_are_no_header_and_image(tmp_path, data):
    (tmp_path / "train.rec").write_bytes(record(data) + record(data_of(1.0, IMAGE, 1)))
    write_index(tmp_path, [0], [0])  # with what follows it is long enough for an image
    images = source(tmp_path / "train.rec")
    [found] = fetched(images, listed(images)[0])
    assert found.reason == "damaged_record"


@pytest.mark.parametrize("index", [None, b"", b"\n"])
def test_empty_file(tmp_path, index):
    (tmp_path / "train.rec").write_bytes(b"")
    if index is not None:
        (tmp_path / "train.idx").write_bytes(index)
    assert listed(source(tmp_path / "train.rec")) == ([], Listing())


@pytest.mark.parametrize("content", [b"not a record file", bytes(64)])
def test_file_of_another_format(tmp_path, content):
    (tmp_path / "train.rec").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.rec: no RecordIO file"):
        listed(source(tmp_path / "train.rec"))


def test_empty_index_beside_records(tmp_path):
    write(tmp_path, THREE)
    (tmp_path / "train.idx").write_bytes(b"")
    with pytest.raises(InputError, match=r"train\.idx is empty"):
        listed(source(tmp_path / "train.rec"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"garbage", "2 columns"),
        (b"7", "2 columns"),
        (b"7\t8\t9", "2 columns"),
        (b"x\t8", "as key"),
        (b"7\t", "as offset"),
        (b"7\t-8", "as offset"),
        (b"7\t8.0", "as offset"),
        (b"7\tnan", "as offset"),
        (b"7\t18446744073709551616", "as offset"),
        (b"\xff\t\0", "as key"),
        (b"7\t" + b"9" * 5000, "as offset"),
    ],
)
def test_garbage_in_the_index(tmp_path, line, expected):
    write(tmp_path, THREE)
    with (tmp_path / "train.idx").open("ab") as stream:
        stream.write(b"\n" + line + b"\r\n5\t8\n")
    with pytest.raises(InputError, match=rf"train\.idx: line 5: expected .*{expected}"):
        listed(source(tmp_path / "train.rec"))


@pytest.mark.parametrize("lines", ["4\tonly.jpg\n", "x\t1\ta.jpg\n", "4\t1\ta.jpg\n5\tb.jpg\n"])
def test_garbage_in_the_list(tmp_path, lines):
    write(tmp_path, THREE)
    (tmp_path / "train.lst").write_text(lines)
    with pytest.raises(InputError, match=r"train\.lst: line \d: expected"):
        listed(source(tmp_path / "train.rec", names=str(tmp_path / "train.lst")))


def test_wrong_paths(tmp_path):
    write(tmp_path, THREE)
    with pytest.raises(InputError, match=r"expected the \.rec"):
        source(tmp_path / "train.idx")
    with pytest.raises(InputError, match="nothing is at"):
        source(tmp_path / "other.rec")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \*\.rec file"):
        source(tmp_path / "empty").files()
    with pytest.raises(InputError, match=r"no \*\.rec file"):
        source(tmp_path / "empty", names="a.lst")


def test_key_of_no_image(tmp_path):
    write(tmp_path, THREE)
    images = source(tmp_path / "train.rec")
    items = from_table(locate(images, pa.chunked_array([["9", "5"]])))
    found = fetched(images, items)
    assert found[0].data == THREE[2][2]
    assert isinstance(found[1], InputError)
    assert "holds no image '5'" in str(found[1])


def test_neighbours_are_read_by_one_request(tmp_path, monkeypatch):
    write(tmp_path, THREE)
    asked = []
    read_range = Location.read_range

    def counted(self, offset, length):
        asked.append((offset, length))
        return read_range(self, offset, length)

    monkeypatch.setattr(Location, "read_range", counted)
    images = source(tmp_path / "train.rec")
    assert read(images) == READ
    assert asked == [(0, (tmp_path / "train.rec").stat().st_size)]


def test_source_travels(tmp_path):
    write(tmp_path, THREE)
    images = source(tmp_path / "train.rec")
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301 - made here
    assert copy == images
    assert len(pickle.dumps(images)) < 1000
    assert read(copy) == READ


@pytest.mark.parametrize("index", [True, False])
def test_on_s3(s3_bucket, tmp_path, index):
    write(tmp_path, THREE, index)
    root = Location(f"s3://{s3_bucket}/sets")
    for file in tmp_path.iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    assert read(source((root / "train.rec").uri)) == READ
    assert [entry[0] for entry in read(source(root.uri))] == [f"train.rec/{k}" for k, _, _ in READ]
