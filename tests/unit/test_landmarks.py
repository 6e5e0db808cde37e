"""Landmarks from a text file find their images, and faces are aligned by them."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import scipy.ndimage
from hypothesis import given, settings
from PIL import Image

from sdd_ray import columns
from sdd_ray.core.alignment import ARCFACE_TEMPLATE
from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError, decode_image
from sdd_ray.formats.items import Content, Item, Listing, PackedSource, from_table
from sdd_ray.formats.landmarks import WithLandmarks, read_landmarks
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject
from sdd_ray.synthetic.samples import SyntheticSet, draw, image_id_of

POINTS = (38.5, 51.75, 73.5, 51.5, 56.0, 71.75, 41.5, 92.25, 70.75, 92.0)
TEXT = " ".join(map(str, POINTS))


def write(tmp_path, text):
    place = tmp_path / "landmarks.txt"
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Location(str(place))


def found(table, *image_ids):
    """Return the ten numbers of each image, None where it has none."""
    rows = table.find(image_ids).tolist()
    return [None if row < 0 else tuple(table.points[row].tolist()) for row in rows]


@pytest.mark.parametrize("delimiter", [" ", "\t", ",", ", ", "   "])
@pytest.mark.parametrize("score", ["", "0.998", "1"])
@pytest.mark.parametrize("name", ["a/1.jpg", "my photos/Anna B 2.jpg", "7", "ä,ö.png"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_lines_of_all_forms(tmp_path, delimiter, score, name, end):
    line = delimiter.join([name, *map(str, POINTS), *([score] if score else [])])
    table = read_landmarks(write(tmp_path, line + end))
    assert found(table, name, name + "x") == [POINTS, None]


@pytest.mark.parametrize("score", ["", " 0.9"])
def test_numbers_of_either_order(tmp_path, score):
    split = " ".join(map(str, [*POINTS[::2], *POINTS[1::2]]))
    place = write(tmp_path, f"a {split}{score}\nb {split}{score}")
    assert found(read_landmarks(place, "split"), "a", "b") == [POINTS, POINTS]
    (tmp_path / "a").write_bytes(b"x")
    wanted = {"interleaved": (*POINTS[::2], *POINTS[1::2]), "split": POINTS}
    for order, points in wanted.items():
        source = open_source(
            folder_config(tmp_path, landmarks=place.uri, landmark_order=order, extensions=("a",))
        )
        assert [item.landmarks for item in source.items(Listing())] == [points]


def test_an_order_without_landmarks_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="landmark_order=split, but there are no landmarks"):
        folder_config(tmp_path, landmark_order="split")


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_a_name_that_ends_in_a_number(tmp_path, delimiter):
    lines = [delimiter.join([f"img {n}", *map(str, POINTS)]) for n in range(3)]
    table = read_landmarks(write(tmp_path, "\n".join(lines)))
    assert found(table, "img 1", "img") == [POINTS, None]


def test_such_a_name_between_spaces_is_never_taken_for_another(tmp_path):
    table = read_landmarks(write(tmp_path, f"img 7 {TEXT}"))
    assert found(table, "img 7") == [None]


def test_a_mark_at_the_start_and_empty_lines_are_skipped(tmp_path):
    table = read_landmarks(write(tmp_path, f"\ufeffa {TEXT}\n\n  \nb {TEXT}\n"))
    assert found(table, "b", "a") == [POINTS, POINTS]


@settings(max_examples=40)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, unique_by=str.strip),
    st.data(),
)
def test_every_name_finds_its_own_numbers(tmp_path_factory, names, data):
    names = [n.strip() for n in names if n.strip() and not set(n) & {"\n", "\t", "\r", "\ufeff"}]
    points = {
        name: tuple(np.float32([data.draw(st.floats(width=32, allow_nan=False))] * 10).tolist())
        for name in names
    }
    lines = ["\t".join([name, *map(repr, values)]) for name, values in points.items()]
    place = write(tmp_path_factory.mktemp("law"), "\n".join(["\t".join(["0x", *"0" * 10]), *lines]))
    table = read_landmarks(place)
    wanted = [*reversed(names), "not there"]
    assert found(table, *wanted) == [points.get(name) for name in wanted]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "got none"),
        (b"\n \n", "got none"),
        (f"a {TEXT}\nb 1 2 3", "line 2: expected image_id and ten numbers, in UTF-8, got 'b 1 2 3"),
        (f"a {TEXT}\n\n{TEXT}", "line 3"),  # no name
        (f"image_id x1 y1\na {TEXT}", "line 1.*got 'image_id x1"),
        (f"a {TEXT[:-1]}x", "line 1"),
        (b"\xff\xfe " + TEXT.encode(), r"line 1.*\\xff"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "line 1"),
        (f"a {TEXT}\nb {TEXT}\na {TEXT}", "expected one line an image, got more for 'a'"),
    ],
)
def test_what_is_no_list_of_landmarks(tmp_path, text, message):
    place = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_landmarks(place)
    assert place.uri in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*gone\.txt"):
        read_landmarks(Location(f"{tmp_path}/gone.txt"))


def test_a_file_on_s3(s3_bucket):
    place = Location(f"s3://{s3_bucket}/landmarks.txt")
    place.write_bytes(f"a/1.jpg {TEXT}\n".encode())
    assert found(read_landmarks(place), "a/1.jpg") == [POINTS]


class Packed(PackedSource):
    """Images that must be listed to be found; each is 112 pixels of its number's grey."""

    names = tuple(f"p{n}" for n in range(6))

    def files(self):
        return ["file"]

    def scan(self, file, listing):
        listing.rejects.append(Reject("early", "no_identity", ""))
        for n, name in enumerate(self.names):
            yield Item(name, f"person{n}", file, n, 1)

    def groups(self, items):
        return [list(range(len(items)))]

    def contents(self, file, items):
        assert items, "a group of nothing was asked for"
        return [Content(np.full((112, 112, 3), i.offset, np.uint8)) for i in items]


def packed():
    return Packed(Location("nowhere"), "file")


def test_images_without_landmarks_are_set_aside(tmp_path):
    place = write(tmp_path, f"p4 {TEXT}\nother {TEXT}\np1 {TEXT} 0.5")
    source, listing = WithLandmarks(packed(), place), Listing()
    items = list(source.items(listing))
    assert items == [Item(f"p{n}", f"person{n}", "file", n, 1, POINTS) for n in (1, 4)]
    assert [(r.image_id, r.reason) for r in listing.rejects] == [
        ("early", "no_identity"),
        *((f"p{n}", "no_landmarks") for n in (0, 2, 3, 5)),
    ]
    assert place.uri in listing.rejects[-1].detail


@pytest.mark.parametrize("kind", [Packed, "folder"])
def test_located_items_bring_their_landmarks(tmp_path, kind):
    place = write(tmp_path, f"p4 {TEXT}\np1 {TEXT}")
    inner = packed() if kind is Packed else open_source(folder_config(tmp_path))
    source = WithLandmarks(inner, place)
    assert source.needs_listing == (kind is Packed)
    table = locate(source, pa.chunked_array([["p1", "p2"], ["nowhere", "p4"]]))
    assert table.schema.equals(columns.INDEX)
    items = from_table(table)
    assert [item.image_id for item in items] == ["p1", "p2", "nowhere", "p4"]
    assert [item.landmarks for item in items] == [POINTS, None, None, POINTS]
    assert [item._replace(landmarks=None) for item in items] == from_table(
        locate(inner, pa.chunked_array([["p1", "p2", "nowhere", "p4"]]))
    )


def test_located_nothing(tmp_path):
    source = WithLandmarks(packed(), write(tmp_path, f"p4 {TEXT}"))
    table = locate(source, pa.chunked_array([[]], pa.string()))
    assert table.equals(columns.INDEX.empty_table())


def test_what_has_no_landmarks_is_not_shown_unaligned(tmp_path):
    source = WithLandmarks(packed(), write(tmp_path, f"p4 {TEXT}"))
    items = from_table(locate(source, pa.chunked_array([["p1", "p4", "p5"]])))
    contents = source.fetch(items)
    assert [getattr(content, "reason", None) for content in contents] == [
        "no_landmarks",
        None,
        "no_landmarks",
    ]
    assert contents[1].data[0, 0, 0] == 4
    assert [content.reason for content in source.fetch(items[:1])] == ["no_landmarks"]


def folder_config(tmp_path, **options):
    return SourceConfig(kind="folder", path=str(tmp_path), identity="none", **options)


def test_the_file_is_not_needed_by_workers(tmp_path):
    place = write(tmp_path, f"1.png {TEXT}")
    Image.new("RGB", (112, 112), (7, 7, 7)).save(tmp_path / "1.png")
    source = open_source(folder_config(tmp_path, landmarks=place.uri))
    (item,) = source.items(Listing())
    pickled = pickle.dumps(source)
    assert len(pickled) < 1_000
    (tmp_path / "landmarks.txt").unlink()
    assert (read_face(pickle.loads(pickled), item) == 7).mean() > 0.9  # noqa: S301


def test_relative_place_holds_in_another_working_directory(tmp_path, monkeypatch):
    write(tmp_path, f"1.png {TEXT}")
    (tmp_path / "1.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    source = open_source(folder_config(tmp_path, landmarks="landmarks.txt"))
    monkeypatch.chdir("/")
    assert [item.image_id for item in source.items(Listing())] == ["1.png"]


def test_drawn_faces_have_no_use_for_landmarks():
    with pytest.raises(ValueError, match="drawn faces are aligned already"):
        SourceConfig(landmarks="points.txt")


def placed(face, matrix, shape):
    """Return a picture with a face crop where a (2, 3) matrix puts it, and (5, 2) landmarks."""
    there = np.linalg.inv(matrix[:, :2])
    turn, shift = there[::-1, ::-1], -(there @ matrix[:, 2])[::-1]  # rows first
    channels = [
        scipy.ndimage.affine_transform(c, turn, shift, shape, order=3, mode="nearest")
        for c in np.moveaxis(face.astype(float), 2, 0)
    ]
    picture = np.clip(np.stack(channels, axis=-1).round(), 0, 255).astype(np.uint8)
    return picture, ARCFACE_TEMPLATE @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1, 0, (60, 33)), (2.2, 25, (150, 20)), (1.7, -110, (120, 260))]
)
def test_faces_in_pictures_come_back(tmp_path, scale, degrees, shift):
    faces = SyntheticSet(seed=5, num_identities=3, images_per_identity=1, first_identity=0)
    turn = scale * np.exp(1j * np.deg2rad(degrees))
    matrix = np.array([[turn.real, -turn.imag, shift[0]], [turn.imag, turn.real, shift[1]]])
    crops, lines = {}, []
    for n in range(3):
        crops[f"my set/{n}.png"] = draw(faces, image_id_of(5, n, 0)).image
    (tmp_path / "my set").mkdir()
    for name, crop in crops.items():
        picture, points = placed(crop, matrix, (420, 400))
        Image.fromarray(picture).save(tmp_path / name)
        lines.append(" ".join([name, *(f"{value:.3f}" for value in points.ravel()), "0.99"]))
    place = write(tmp_path, "\n".join(lines))
    source = open_source(folder_config(tmp_path, landmarks=place.uri))
    listing = Listing()
    items = list(source.items(listing))
    assert listing == Listing([], 1)  # the landmarks lie beside the images
    assert [item.image_id for item in items] == sorted(crops)
    located = from_table(locate(source, pa.chunked_array([sorted(crops)])))
    for item, again in zip(items, located, strict=True):
        face = read_face(source, item)
        difference = np.abs(face.astype(int) - crops[item.image_id])[4:-4, 4:-4]
        assert difference.mean() < 1
        assert np.quantile(difference, 0.99) <= 6
        np.testing.assert_array_equal(read_face(source, again), face)
        unaligned = decode_image((tmp_path / item.image_id).read_bytes())
        assert np.abs(unaligned.astype(int) - crops[item.image_id]).mean() > 10


def test_one_face_that_cannot_be_aligned_is_one_reject(tmp_path):
    Image.new("RGB", (112, 112)).save(tmp_path / "1.png")
    place = write(tmp_path, "1.png" + 10 * " nan")
    source = open_source(folder_config(tmp_path, landmarks=place.uri))
    (item,) = source.items(Listing())
    with pytest.raises(ImageRejectedError, match="bad_landmarks"):
        read_face(source, item)
