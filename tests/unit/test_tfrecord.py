"""TFRecord files with an index, written here by the specification: checksums, Examples, damage."""

import io
import pickle
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import contents_of as read
from pictures import fetched, listed
from PIL import Image
from tfrecords import INT64_LABEL, crc32c, example, feature, field, framed, masked, varint, write

from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Listing, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.formats.tfrecord import _image_in
from sdd_ray.settings import SourceConfig, TFRecordConfig
from sdd_ray.store.location import Location

IMAGE = bytes(range(200))


def source(path, identity=None, **options):
    config = TFRecordConfig(**options)
    kind = SourceConfig(kind="tfrecord", path=str(path), identity=identity, tfrecord=config)
    return open_source(kind)


SHARDS = [[("3", b"a" * 50), ("17", b"b" * 90)], [("3", b"c" * 70)]]
SIZE = len(framed(example(b"a" * 50)))
READ = [
    ("T-00000/0", "3", b"a" * 50),
    (f"T-00000/{SIZE}", "17", b"b" * 90),
    ("T-00001/0", "3", b"c" * 70),
]


@pytest.fixture
def index(tmp_path):
    """The index of a small set."""
    path = tmp_path / "train.index"
    path.write_text("".join(write(tmp_path, "T", SHARDS)))
    return path


def test_checksum_is_that_of_the_rfc():
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_images_with_their_labels(index):
    images = source(index)
    assert read(images) == READ
    assert listed(images)[1] == Listing()
    assert [entry[1] for entry in read(source(index, "none"))] == [None] * 3


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 2, 0]])
def test_index_in_any_order_is_listed_as_the_images_lie(index, order):
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("\n".join(lines[i] for i in order))
    assert read(source(index)) == READ


def test_index_may_leave_records_out(index):
    lines = index.read_text().splitlines(keepends=True)
    index.write_text(lines[0] + lines[2])
    assert read(source(index)) == [READ[0], READ[2]]


def test_sets_are_listed_by_name_and_number(tmp_path):
    many = write(tmp_path, "b", [[("1", IMAGE)]] * 11)
    lines = [*reversed(many), *write(tmp_path, "a", [[("2", IMAGE)]])]
    (tmp_path / "x.index").write_text("".join(lines))
    wanted = ["a-00000/0", *(f"b-{shard:05d}/0" for shard in range(11))]
    assert [entry[0] for entry in read(source(tmp_path / "x.index"))] == wanted


def test_folder_of_indexes(tmp_path, index):
    lines = write(tmp_path / "sub", "T", [[("5", IMAGE)]])
    (tmp_path / "sub/x.index").write_text("".join(lines))
    # Each index names the records that lie beside it.
    nested = ("sub/T-00000/0", "5", IMAGE)
    assert read(source(tmp_path)) == [nested, *READ]


def test_records_in_another_folder(tmp_path):
    lines = write(tmp_path / "records", "T", SHARDS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("".join(lines))
    images = source(tmp_path / "lists/train.txt", root=str(tmp_path / "records"))
    assert read(images) == READ
    with pytest.raises(InputError, match=r"T-00000\.tfrecord, .*source\.tfrecord\.root is"):
        listed(source(tmp_path / "lists/train.txt"))


def test_same_pixels_and_persons_as_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    shard = []
    for number in range(6):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (112, 112, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "jpeg")
        place = tmp_path / f"faces/{number // 2}/{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(buffer.getvalue())
        shard.append((number // 2, buffer.getvalue()))
    (tmp_path / "x.index").write_text("".join(write(tmp_path, "T", [shard])))
    folder = open_source(SourceConfig(kind="folder", path=str(tmp_path / "faces")))
    packed = source(tmp_path / "x.index")
    pairs = zip(listed(folder)[0], listed(packed)[0], strict=True)
    for wanted, found in pairs:
        assert found.identity == wanted.identity
        assert np.array_equal(read_face(packed, found), read_face(folder, wanted))


def test_lines_without_a_label(index):
    index.write_text(index.read_text().replace("\t17\n", "\t \n"))
    items, listing = listed(source(index))
    assert len(items) == 2
    assert [(r.image_id, r.reason) for r in listing.rejects] == [(READ[1][0], "no_identity")]
    assert len(listed(source(index, "none"))[0]) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/1.jpg\t3", r"source\.kind=list"),
        ("a/1.jpg\t0\t3", "name no persons"),
        ("a/1.jpg", "line 1: expected 4 columns"),
        ("T\t0\t0\t3\t4", "line 1: expected 4 columns"),
        ("T\t-1\t0\t3", "line 1: expected .* as shard"),
        ("T\t4294967296\t0\t3", "line 1: expected .* as shard"),
        ("T\t0\tx\t3", "line 1: expected .* as offset"),
        ("T\t0\t0\t3\n\nT\t0\n", "line 3: expected 4 columns"),
        ("T\t0\t0\t\udcff", "line 1: expected label in UTF-8"),
        ("../T\t0\t0\t3", "no name of a folder"),
        ("..\t0\t0\t3", "no name of a folder"),
        ("\t0\t0\t3", "no name of a folder"),
        ("T\t7\t0\t3", r"T-00007\.tfrecord, which is not there"),
    ],
)
def test_garbage_in_the_index(index, line, message):
    index.write_bytes(line.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        listed(source(index))
    assert index.name in str(caught.value)


def test_empty_files(index, tmp_path):
    (tmp_path / "T/T-00001.tfrecord").write_bytes(b"")
    items, listing = listed(source(index))
    assert len(items) == 2
    assert [(r.image_id, r.reason) for r in listing.rejects] == [("T-00001/0", "damaged_record")]
    index.write_bytes(b"")
    assert listed(source(index)) == ([], Listing())


def test_index_beyond_the_end(index):
    with index.open("a") as stream:
        stream.write(f"T\t0\t{10**9}\t3\nT\t1\t{2**64 - 1}\t3\n")
    items, listing = listed(source(index))
    assert len(items) == 3
    assert [reject.reason for reject in listing.rejects] == ["damaged_record"] * 2
    assert "byte 1,000,000,000" in listing.rejects[0].detail


@pytest.mark.parametrize("missing", [1, 4, 100, 130])
def test_truncated_file(index, tmp_path, missing):
    path = tmp_path / "T/T-00000.tfrecord"
    path.write_bytes(path.read_bytes()[:-missing])
    images = source(index)
    found = fetched(images, listed(images)[0])
    assert found[1].reason == "damaged_record"
    assert [content.data for content in (found[0], found[2])] == [READ[0][2], READ[2][2]]


@pytest.mark.parametrize(("at", "bit"), [(0, 1), (7, 128), (8, 1), (11, 4)])
def test_length_with_a_wrong_checksum(index, tmp_path, at, bit):
    path = tmp_path / "T/T-00000.tfrecord"
    content = bytearray(path.read_bytes())
    content[SIZE + at] ^= bit
    path.write_bytes(content)
    images = source(index)
    found = fetched(images, listed(images)[0])
    assert [isinstance(content, ImageRejectedError) for content in found] == [False, True, False]
    assert found[1].reason == "damaged_record"
    assert f"byte {SIZE} of T/T-00000.tfrecord: the checksum" in found[1].detail


def test_length_of_gigabytes_with_a_right_checksum(index, tmp_path):
    length = struct.pack("<Q", 2**40)
    (tmp_path / "T/T-00001.tfrecord").write_bytes(length + masked(length) + IMAGE)
    images = source(index)
    assert fetched(images, listed(images)[0])[2].reason == "too_large"


def image_in(message):
    return _image_in(memoryview(message), b"image")


@pytest.mark.parametrize(
    "message",
    [
        example(IMAGE),
        field(1, feature(b"image", IMAGE, b"second")),
        field(1, feature(b"images", b"other") + feature(b"image", IMAGE) + INT64_LABEL),
        field(1, INT64_LABEL) + field(1, feature(b"image", IMAGE)),
        # Fields that are not known: a number, eight bytes, four bytes, bytes.
        varint(9 << 3) + varint(2**63) + example(IMAGE) + varint(9 << 3 | 1) + bytes(8),
        varint(2**28 << 3 | 5) + bytes(4) + field(7, b"x") + example(IMAGE),
        field(1, field(1, field(2, field(1, field(1, IMAGE))) + field(1, b"image"))),
    ],
)
def test_image_of_an_example(message):
    assert image_in(message) == IMAGE


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "missing_feature"),
        (example(IMAGE, b"img"), "missing_feature"),
        (field(1, b""), "missing_feature"),
        (example(IMAGE)[:-1], "damaged_record"),
        (b"\x0a", "damaged_record"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "damaged_record"),
        (b"\xff" * 50, "damaged_record"),
        (varint(9 << 3) + b"\x80" * 10 + b"\x01" + example(IMAGE), "damaged_record"),
        (b"\x0b\x0c" + example(IMAGE), "damaged_record"),
        (varint(9 << 3 | 5) + bytes(3), "damaged_record"),
        (b"\x0f" * 20, "damaged_record"),
    ],
)
def test_what_is_no_example(message, reason):
    with pytest.raises(ImageRejectedError) as caught:
        image_in(message)
    assert caught.value.reason == reason


def test_missing_feature_says_which_there_are(index):
    images = source(index, image="jpeg")
    error = fetched(images, listed(images)[0])[0]
    assert error.reason == "missing_feature"
    assert "'jpeg', got the features 'label', 'image'" in error.detail


@given(st.data())
def test_damaged_examples_are_rejected_or_read(data):
    message = bytearray(example(IMAGE))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(image_in(bytes(message)), bytes)
    except ImageRejectedError as error:
        assert error.reason in ("damaged_record", "missing_feature")  # noqa: PT017


def test_key_of_no_image(index):
    images = source(index)
    items = from_table(locate(images, pa.chunked_array([["T-00001/0", "T-00001/5"]])))
    found = fetched(images, items)
    assert found[0].data == READ[2][2]
    assert isinstance(found[1], InputError)
    assert "holds no image 'T-00001/5'" in str(found[1])


def test_neighbours_are_read_by_one_request(index, monkeypatch):
    asked = []
    read_range = Location.read_range

    def counted(self, offset, length):
        asked.append((self.uri.rpartition("/")[2], offset))
        return read_range(self, offset, length)

    monkeypatch.setattr(Location, "read_range", counted)
    assert read(source(index)) == READ
    assert asked == [("T-00000.tfrecord", 0), ("T-00001.tfrecord", 0)]


def test_source_travels(index):
    images = source(index)
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301 - made here
    assert copy == images
    assert len(pickle.dumps(images)) < 1000
    assert read(copy) == READ


def test_on_s3(s3_bucket, index, tmp_path):
    root = Location(f"s3://{s3_bucket}/sets")
    for file in tmp_path.rglob("*.*"):
        (root / str(file.relative_to(tmp_path))).write_bytes(file.read_bytes())
    assert read(source((root / "train.index").uri)) == READ
    assert read(source(root.uri)) == READ
    assert read(source(index, root=root.uri)) == READ
