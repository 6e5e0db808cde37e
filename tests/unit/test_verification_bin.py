"""Verification sets: pickles of pictures are read, pickles of anything else run nothing."""

import builtins
import io
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from sdd_ray.errors import InputError
from sdd_ray.formats import verification_bin
from sdd_ray.formats.items import Item, Listing, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.formats.verification_bin import read_bin
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location

IMAGES = [bytes([value]) * (40 + value) for value in range(6)]
SAME = [True, False, True]


def arrays(shape=(-1,)):
    return [np.frombuffer(image, np.uint8).copy().reshape(shape) for image in IMAGES]


def write(path, found, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(found, protocol))
    return Location(str(path))


def source(path):
    return open_source(SourceConfig(kind="bin", path=str(path)))


def read(images):
    """Return image_id, identity and bytes of each image."""
    items = list(images.items(Listing()))
    found = [None] * len(items)
    for group in images.groups(items):
        for place, content in zip(group, images.fetch([items[i] for i in group]), strict=True):
            found[place] = content
    pairs = zip(items, found, strict=True)
    return [
        (item.image_id, item.identity or content.identity, content.data) for item, content in pairs
    ]


@pytest.fixture(autouse=True)
def _nothing_kept():
    verification_bin._images_of.cache_clear()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "images", [IMAGES, arrays(), arrays((-1, 1)), [*IMAGES[:3], *arrays()[3:]]]
)
def test_images_are_bytes_or_arrays(tmp_path, images, protocol):
    found, same = read_bin(write(tmp_path / "x.bin", (images, SAME), protocol))
    assert found == IMAGES
    assert all(type(image) is bytes for image in found)
    assert same.tolist() == SAME
    assert same.dtype == np.bool_


def short(text):
    """Return the opcode of a short text of Python 2."""
    return b"U" + bytes([len(text)]) + text


DTYPE = (
    b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def reconstructed(package, image, dtype=b"u1", shape=None):
    """Return an array as Python 2 wrote it (protocol 2), opcode by opcode."""
    shape = b"M" + struct.pack("<H", len(image)) + b"\x85" if shape is None else shape
    return (
        b"c" + package + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01"
        + shape
        + DTYPE.replace(short(b"u1"), short(dtype))
        + b"\x89T"
        + struct.pack("<I", len(image))
        + image
        + b"tb"
    )


def from_buffer(package, image):
    """Return an array as numpy writes it in protocol 5."""
    name = package + b".numeric"
    return (
        b"\x8c" + bytes([len(name)]) + name + b"\x8c\x0b_frombuffer\x93"
        b"(\x96" + struct.pack("<Q", len(image)) + image + b"cnumpy\ndtype\n\x8c\x02u1\x89\x88\x87R"
        b"M" + struct.pack("<H", len(image)) + b"\x85\x8c\x01Ct\x94R"
    )


def assembled(images, same=b"\x88\x89\x88", protocol=2):
    return b"\x80" + bytes([protocol]) + b"](" + b"".join(images) + b"e](" + same + b"e\x86."


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize(("array", "protocol"), [(reconstructed, 2), (from_buffer, 5)])
def test_arrays_of_any_numpy_and_python(tmp_path, array, protocol, package):
    content = assembled([array(package, image) for image in IMAGES], protocol=protocol)
    (tmp_path / "x.bin").write_bytes(content)
    assert read_bin(Location(str(tmp_path / "x.bin")))[0] == IMAGES
    plain = pickle.loads(content, encoding="bytes")  # noqa: S301 - made here
    assert [bytes(image) for image in plain[0]] == IMAGES


def test_bytes_of_python_2(tmp_path):
    content = assembled([short(image) for image in IMAGES], same=b"I01\nI00\nI01\n")
    (tmp_path / "x.bin").write_bytes(content)
    images, same = read_bin(Location(str(tmp_path / "x.bin")))
    assert images == IMAGES
    assert same.tolist() == SAME


def test_real_set_equals_a_folder_of_its_pictures(shared_data, tmp_path):
    path = shared_data / "formats/small_lfw.bin"
    bins, wanted = pickle.loads(path.read_bytes(), encoding="bytes")  # noqa: S301 - known file
    images, same = read_bin(Location(str(path)))
    assert images == [bytes(image) for image in bins]
    assert same.tolist() == wanted
    for number, image in enumerate(bins):
        (tmp_path / f"{number:06d}.jpg").write_bytes(bytes(image))
    folder = open_source(SourceConfig(kind="folder", path=str(tmp_path), identity="none"))
    packed = source(path)
    pairs = list(zip(folder.items(Listing()), packed.items(Listing()), strict=True))
    assert len(pairs) == 20
    for one, other in pairs:
        assert one.image_id == f"{other.image_id}.jpg"
        assert np.array_equal(read_face(folder, one), read_face(packed, other))


class Evil:
    """Runs a call when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def places(evil):
    """Return verification sets that hold an object in different places."""
    return [
        evil,
        (evil, SAME),
        (IMAGES, evil),
        ([*IMAGES[:5], evil], SAME),
        (IMAGES, [True, evil, True]),
        ([*IMAGES[:5], [[{"a": (evil,)}]]], SAME),
        (np.array([evil] * 6, dtype=object), SAME),
        ([*arrays()[:5], np.array([evil], dtype=object)], SAME),
    ]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", range(8))
def test_code_is_not_run(tmp_path, protocol, place):
    mark = tmp_path / "mark"
    for evil in (
        Evil(os.system, f"touch {mark}"),
        Evil(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Evil(io.open, str(mark), "w"),
    ):
        location = write(tmp_path / "x.bin", places(evil)[place], protocol)
        with pytest.raises(
            InputError,
            match=r"no verification set: (the pickle asks|.* dtype O8|expected (2 )?lists)",
        ):
            read_bin(location)
        assert not mark.exists()
        pickle.loads((tmp_path / "x.bin").read_bytes())  # noqa: S301 - it is code that runs
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'touch mark'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch mark'\no.",
        b"cos\nsystem\n(S'touch mark'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch mark\x85R.",
        # Nothing is reached through what is admitted.
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        b"cnumpy\ndtype.__subclasses__\n)R.",
        b"cnumpy\nload\n(S'mark'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"c_codecs\nencode\n.",
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\neval\n.",
        b"\x82\x01.",
        b"Pmark\n.",
    ],
)
def test_code_in_other_opcodes(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.bin: no verification set"):
        read_bin(Location("x.bin"))
    assert os.listdir() == ["x.bin"]


@pytest.mark.parametrize(
    "name", [b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct"]
)
@pytest.mark.parametrize("state", [b"}U\x07contentK\x01s", b"N}U\x0c__setstate__K\x01s\x86", b"N"])
def test_what_is_admitted_cannot_be_changed(tmp_path, name, state):
    (tmp_path / "x.bin").write_bytes(b"\x80\x02c" + name + b"\n" + state + b"b.")
    with pytest.raises(InputError, match="no verification set"):
        read_bin(Location(str(tmp_path / "x.bin")))
    assert read_bin(write(tmp_path / "y.bin", (arrays(), SAME)))[0] == IMAGES


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(6, np.float32),
        np.zeros(6, np.int8),
        np.zeros(6, np.bool_),
        np.zeros(6, "S1"),
        np.zeros(6, [("a", "u1")]),
        np.array([b"x"] * 6, dtype=object),
        np.zeros((2, 3), np.uint8),
        np.zeros((112, 112, 3), np.uint8),
        np.uint8(3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("protocol", [3, 5])
def test_other_arrays_are_refused(tmp_path, array, protocol):
    location = write(tmp_path / "x.bin", ([*IMAGES[:5], array], SAME), protocol)
    with pytest.raises(
        InputError, match=r"no verification set: (expected (arrays|2 lists|lists)|the pickle asks)"
    ):
        read_bin(location)


@pytest.mark.parametrize(
    "array",
    [
        reconstructed(b"numpy.core", IMAGES[0], dtype=b"O8"),
        reconstructed(b"numpy.core", IMAGES[0], shape=b"M\xff\xff\x85"),
        reconstructed(b"numpy.core", IMAGES[0], shape=b"J\xff\xff\xff\xff\x85"),
        reconstructed(b"numpy.core", IMAGES[0], shape=b"N"),
        reconstructed(b"numpy.core", IMAGES[0]).replace(DTYPE, b"N"),
        # Without state, and with the constructor of the dtype passed by.
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
        b"cnumpy\ndtype\nU\x02f4\x85\x81",
    ],
)
def test_arrays_that_do_not_fit_their_numbers(tmp_path, array):
    images = [array, *map(short, IMAGES[1:])]
    (tmp_path / "x.bin").write_bytes(assembled(images))
    with pytest.raises(
        InputError, match=r"no verification set: (expected arrays|image 0|a damaged)"
    ):
        read_bin(Location(str(tmp_path / "x.bin")))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (IMAGES, "expected a pair"),
        ({"a": 1, "b": 2}, "expected lists, .* got EMPTY_DICT"),
        (7, "expected a pair, .* got int"),
        ([[], [], []], "expected 2 lists"),
        ((IMAGES, tuple(SAME)), "expected two lists, got list and tuple"),
        ((arrays()[0], SAME), "expected two lists, got Array"),
        ((IMAGES, SAME[:2]), "two images a pair, got 6 and 2 pairs"),
        ((IMAGES[:5], SAME), "two images a pair, got 5 and 3 pairs"),
        (([*IMAGES[:5], "text"], SAME), "image 5: expected bytes, got str"),
        (([None, *IMAGES[:5]], SAME), "image 0: expected bytes, got NoneType"),
        ((IMAGES, [True, 1, True]), "pair 1: expected True or False, got int"),
    ],
)
def test_other_pickles(tmp_path, found, message):
    with pytest.raises(InputError, match=rf"x\.bin: no verification set: .*{message}"):
        read_bin(write(tmp_path / "x.bin", found))


def test_truncated_files(tmp_path):
    whole = pickle.dumps((arrays(), SAME), 4)
    for kept in range(0, len(whole), 7):
        (tmp_path / "x.bin").write_bytes(whole[:kept])
        with pytest.raises(InputError, match="no verification set: a damaged pickle"):
            read_bin(Location(str(tmp_path / "x.bin")))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x02](" + b"]2" * 10 + b"e]\x86.",
    ],
)
def test_hostile_numbers(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match="no verification set"):
        read_bin(Location(str(tmp_path / "x.bin")))


@pytest.mark.parametrize(
    "content", [b"\x80\x02]r\xff\xff\xff\x7f.", b"]p2147483647\n.", b"]q\x02."]
)
def test_memory_for_the_memo_is_not_taken(tmp_path, content):
    # It is an array up to the highest place, here of 32 GiB.
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"place \d+ of the memo, 1 in use"):
        read_bin(Location(str(tmp_path / "x.bin")))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "opcode", [b"}", b"(d", b"\x8f", b"(\x91", b"]", b"(l", b")\x85", b"NN\x86"]
)
def test_memory_for_many_objects_is_not_taken(tmp_path, opcode):
    (tmp_path / "x.bin").write_bytes(b"\x80\x04](" + opcode * 500_000 + b"e](e\x86.")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"no verification set: expected (2 )?lists"):
            read_bin(Location(str(tmp_path / "x.bin")))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("are_arrays", [False, True])
def test_as_many_small_images_as_in_lfw(tmp_path, protocol, are_arrays):
    images = [number.to_bytes(4, "big") * 100 for number in range(12_000)]
    found = [np.frombuffer(image, np.uint8) for image in images] if are_arrays else images
    write(tmp_path / "x.bin", (found, [True, False] * 3000), protocol)
    assert read_bin(Location(str(tmp_path / "x.bin")))[0] == images


def test_memo_of_every_writer_is_admitted(tmp_path):
    # Python 2 counts from one, and an optimiser leaves places out.
    content = pickle.dumps((arrays(), SAME), 3)
    (tmp_path / "x.bin").write_bytes(pickletools.optimize(content))
    assert read_bin(Location(str(tmp_path / "x.bin")))[0] == IMAGES
    (tmp_path / "x.bin").write_bytes(b"\x80\x02]q\x01]q\x02\x86q\x03.")
    assert read_bin(Location(str(tmp_path / "x.bin")))[0] == []


def test_large_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x.bin").open("wb") as stream:
        stream.truncate((2 << 30) + 1)  # a sparse file: nothing of it lies on the disk
    with pytest.raises(InputError, match="at most 2,147,483,648 bytes, got 2,147,483,649"):
        read_bin(Location(str(tmp_path / "x.bin")))


def test_images_have_numbers_and_no_persons(tmp_path):
    write(tmp_path / "b.bin", (IMAGES, SAME))
    wanted = [(f"{number:06d}", None, image) for number, image in enumerate(IMAGES)]
    assert read(source(tmp_path / "b.bin")) == wanted
    write(tmp_path / "sub/a.bin", (arrays(), SAME))
    write(tmp_path / "empty.bin", ([], []))
    assert read(source(tmp_path)) == [
        (f"{file}/{image_id}", None, image)
        for file in ("b.bin", "sub/a.bin")
        for image_id, _, image in wanted
    ]


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="nothing is at"):
        source(tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"no \*\.bin file"):
        source(tmp_path).files()
    write(tmp_path / "x.bin", (IMAGES, SAME))
    images = source(tmp_path / "x.bin")
    (tmp_path / "x.bin").unlink()
    with pytest.raises(InputError, match=r"x\.bin"):
        images.fetch([Item("000000", None, "x.bin", 0)])


def test_file_is_read_once_while_it_stays(tmp_path, monkeypatch):
    reads = []

    def counted(location):
        reads.append(location.uri.rpartition("/")[2])
        return read_bin(location)

    monkeypatch.setattr(verification_bin, "read_bin", counted)
    write(tmp_path / "a.bin", (IMAGES, SAME))
    write(tmp_path / "b.bin", (IMAGES[::-1], SAME))
    images = source(tmp_path)
    items = list(images.items(Listing()))
    assert images.groups([items[7], items[1], items[0], items[6]]) == [[0, 3], [1, 2]]
    reads.clear()
    for item in (*items[6:], *items[:6], *items[:3]):
        number = item.offset
        wanted = IMAGES if item.file == "a.bin" else IMAGES[::-1]
        assert images.fetch([item])[0].data == wanted[number]
    assert reads == ["a.bin"]  # b.bin was listed last
    reads.clear()
    write(tmp_path / "a.bin", (IMAGES[:2], SAME[:1]))
    assert images.fetch(items[:2])[1].data == IMAGES[1]
    with pytest.raises(InputError, match=r"a\.bin: expected an image 5, got 2 images"):
        images.fetch(items[:6])
    assert reads == ["a.bin"]


def test_key_of_no_image(tmp_path):
    write(tmp_path / "x.bin", (IMAGES, SAME))
    images = source(tmp_path / "x.bin")
    items = from_table(locate(images, pa.chunked_array([["000005", "000006"]])))
    [first], [second] = images.groups(items)
    assert images.fetch([items[first]])[0].data == IMAGES[5]
    [error] = images.fetch([items[second]])
    assert "holds no image '000006'" in str(error)


def test_source_travels(tmp_path):
    write(tmp_path / "x.bin", (IMAGES, SAME))
    images = source(tmp_path / "x.bin")
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301 - made here
    assert copy == images
    assert len(pickle.dumps(images)) < 1000
    assert read(copy) == read(images)


def test_on_s3(s3_bucket, tmp_path):
    write(tmp_path / "x.bin", (arrays(), SAME))
    place = Location(f"s3://{s3_bucket}/sets/x.bin")
    place.write_bytes((tmp_path / "x.bin").read_bytes())
    assert [entry[2] for entry in read(source(place.uri))] == IMAGES
    assert read_bin(place)[1].tolist() == SAME
