"""Tar files of several writers give the images that they were made from, or say why not."""

import io
import json
import pickle
import shutil
import subprocess
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NAMES, faces_in, faces_of, listed, write_pictures
from PIL import Image

from sdd_ray.errors import InputError
from sdd_ray.formats.items import MAX_FILE_BYTES, Listing, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import SourceConfig, TarConfig
from sdd_ray.store.location import Location

needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no program tar")
ZEROS = bytes(512)


def tar_source(path, rule=None, **options):
    config = SourceConfig(kind="tar", path=str(path), identity=rule, tar=TarConfig(**options))
    return open_source(config)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def header(name, size=0, kind=b"0", link=b""):
    """Return the header of a member by the specification; a size is in octal if it fits."""
    digits = b"%011o\0" % size if 0 <= size < 8**11 else (size % 256**12).to_bytes(12, "big")
    if size >= 8**11:
        digits = bytes([digits[0] | 0x80]) + digits[1:]
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        digits,
        b"00000000000\0" + b" " * 8 + kind,
        link.ljust(100, b"\0") + b"ustar\00000",
    ]
    block = b"".join(fields).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name, data=b"x", kind=b"0", **fields):
    name = name if isinstance(name, bytes) else name.encode()
    return header(name, len(data), kind, **fields) + data + bytes(-len(data) % 512)


def record(keyword, value):
    """Return a record of a pax header, which begins with its own length."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = next(n for n in range(len(rest), len(rest) + 9) if len(b"%d" % n) + len(rest) == n)
    return b"%d" % length + rest


def pax(*records, kind=b"x"):
    return member("././@PaxHeader", b"".join(record(*r) for r in records), kind)


def scanned(folder, content, rule="none", **options):
    """Return ids and rejects (id, reason) of an archive with some content."""
    (folder / "a.tar").write_bytes(content)
    items, listing = listed(tar_source(folder / "a.tar", rule, **options))
    for item in items:
        assert 512 <= item.offset <= item.offset + item.length <= len(content)
    found = [(reject.image_id, reject.reason) for reject in listing.rejects]
    return [item.image_id for item in items], found, listing


DAMAGED = [("a.tar", "damaged_archive")]


# What other programs write


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archive_by_python(pictures, tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        archive.add(pictures, ".")
    assert sorted(faces_of(tar_source(tmp_path / "a.tar"))) == faces_in(pictures)


@needs_tar
@pytest.mark.parametrize("kind", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_archive_by_the_program(pictures, tmp_path, kind):
    names = [name for name in NAMES if len(name) < 90 or kind in ("gnu", "oldgnu", "pax")]
    if kind == "ustar":
        names += [name for name in NAMES if 90 <= len(name) < 255]
    for name in names:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / name, tmp_path / "f" / name)
    command = ["tar", f"--format={kind}", "-C", tmp_path / "f", "-cf", tmp_path / "a.tar", "."]
    subprocess.run(command, check=True)
    assert sorted(faces_of(tar_source(tmp_path / "a.tar"))) == faces_in(tmp_path / "f")


@pytest.mark.parametrize("rule", ["first_folder", "parent_folder", "none"])
def test_persons_in_names(pictures, tmp_path, rule):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures, "")
    assert sorted(faces_of(tar_source(tmp_path / "a.tar", rule))) == faces_in(pictures, rule)


def test_images_lie_in_storage_order_and_other_members_are_counted(pictures, tmp_path):
    (tmp_path / "notes").write_text("x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures / NAMES[1], "b/2.JPG")
        archive.add(tmp_path / "notes", "notes")
        archive.add(tmp_path / "notes", "a/1.cls")
        archive.add(pictures / NAMES[0], "a/1.png")
    items, listing = listed(tar_source(tmp_path / "a.tar"))
    assert [(i.image_id, i.identity) for i in items] == [("b/2.JPG", "b"), ("a/1.png", "a")]
    assert (listing.ignored_files, listing.rejects) == (2, [])


def test_folder_of_archives(pictures, tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "deep").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "deep" / f"{number}.tar", "w") as archive:
            archive.add(pictures / name, name)
    wanted = {identity: pixels for identity, _, pixels in faces_in(pictures)}
    found = faces_of(tar_source(tmp_path))
    assert found == [
        (f"deep/{number}.tar/{name}", name.split("/")[0], wanted[name])
        for number, name in enumerate(NAMES)
    ]


def test_archive_on_s3(pictures, tmp_path, s3_bucket):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures, "")
    Location(f"s3://{s3_bucket}/sets/a.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    assert sorted(faces_of(tar_source(f"s3://{s3_bucket}/sets/a.tar"))) == faces_in(pictures)
    found = faces_of(tar_source(f"s3://{s3_bucket}/sets"))
    assert sorted(image_id for image_id, *_ in found) == sorted(f"a.tar/{n}" for n in NAMES)


def test_archive_on_s3_that_is_cut_behind_its_last_image(s3_bucket):
    place = Location(f"s3://{s3_bucket}/a.tar")
    place.write_bytes(member("a.jpg")[:520])
    items, listing = listed(tar_source(place.uri, "none"))
    assert [item.image_id for item in items] == ["a.jpg"]
    assert [(r.image_id, r.reason) for r in listing.rejects] == DAMAGED


def test_neighbours_are_read_by_one_request(pictures, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures, "")
    source = tar_source(tmp_path / "a.tar")
    requests, read_range = [], Location.read_range

    def counted(self, offset, length):
        requests.append(length)
        return read_range(self, offset, length)

    monkeypatch.setattr(Location, "read_range", counted)
    assert len(faces_of(source)) == len(NAMES)
    assert len(requests) == 1


def test_source_travels(pictures, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures, "")
    source = tar_source(tmp_path / "a.tar", "label")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - ours
    assert copy == source
    assert len(pickle.dumps(source)) < 1000


def test_image_is_found_by_its_key_or_not(pictures, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pictures, "")
    source = tar_source(tmp_path / "a.tar")
    there, gone = from_table(locate(source, pa.chunked_array([[NAMES[3], "gone.jpg"]])))
    wanted = np.asarray(Image.open(pictures / NAMES[3]))
    assert np.array_equal(read_face(source, there), wanted)
    with pytest.raises(InputError, match=r"holds no image 'gone\.jpg'"):
        read_face(source, gone)


def test_real_faces(shared_data, cfp_images):
    source = tar_source(shared_data / "cfp112.tar")
    items, listing = listed(source)
    assert (len(items), len({item.identity for item in items})) == (7000, 500)
    assert listing.rejects == []
    for item, face in zip(items[:20], cfp_images, strict=True):
        assert np.array_equal(read_face(source, item), face)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="nothing is at"):
        listed(tar_source(tmp_path / "a.tar"))
    with pytest.raises(InputError, match=r"no \*\.tar file"):
        listed(tar_source(tmp_path))


# Labels beside images


def labels(folder, *members, **options):
    content = b"".join(member(*m) for m in members) + ZEROS * 2
    (folder / "a.tar").write_bytes(content)
    items, listing = listed(tar_source(folder / "a.tar", "label", **options))
    found = [(item.image_id, item.identity) for item in items]
    return found, [(r.image_id, r.reason) for r in listing.rejects], listing


def test_label_before_and_after_its_image(tmp_path):
    found, rejects, listing = labels(
        tmp_path,
        ("a/1.cls", b" 17\n"),
        ("a/1.jpg",),
        ("a/2.jpg",),
        ("a/2.json", b"{}"),
        ("a/2.CLS", "žofie".encode()),
        ("a/2.seg.png",),
        ("b/2.jpg",),
        ("b/2.cls", b"3"),
    )
    persons = [("a/1.jpg", "17"), ("a/2.jpg", "žofie"), ("a/2.seg.png", "žofie"), ("b/2.jpg", "3")]
    assert (found, rejects, listing.ignored_files) == (persons, [], 1)


def test_images_without_a_label_beside_them(tmp_path):
    found, rejects, listing = labels(
        tmp_path,
        ("a/1.jpg",),
        ("a/2.jpg",),
        ("a/2.cls", b"2"),
        ("a/1.cls", b"1"),  # not beside its image: another sample by WebDataset's rule
        ("a/3.cls.jpg",),
        ("c/2.jpg",),
    )
    assert found == [("a/2.jpg", "2")]
    assert rejects == [(f"{name}.jpg", "no_identity") for name in ("a/1", "a/3.cls", "c/2")]
    assert ".cls beside it" in listing.rejects[0].detail


@pytest.mark.parametrize("label", [b"", b" \n", b"\xff", b"x" * 257, b"x" + b" " * 10**5])
def test_label_that_names_nobody(tmp_path, label):
    found, rejects, listing = labels(
        tmp_path, ("1.jpg",), ("1.cls", label), ("2.cls", b"2"), ("2.jpg",)
    )
    assert (found, rejects) == ([("2.jpg", "2")], [("1.jpg", "no_identity")])
    assert listing.rejects[0].detail.startswith("1.cls names no person: ")


@pytest.mark.parametrize(
    ("tree", "person"),
    [({"who": "anna "}, "anna"), ({"who": 7}, "7"), ({"who": -1, "b": []}, "-1")],
)
def test_label_in_json(tmp_path, tree, person):
    members = [("1.jpg",), ("1.json", json.dumps(tree).encode())]
    assert labels(tmp_path, *members, label="json", field="who")[0] == [("1.jpg", person)]


@pytest.mark.parametrize(
    "text",
    [
        '{"other": 1}',
        '{"who": 1.5}',
        '{"who": true}',
        '{"who": null}',
        '{"who": ["a"]}',
        '{"who": ""}',
        '{"who": 1' + "0" * 5000 + "}",
        '["who"]',
        "{",
        "[" * 60_000,
        '{"who": "' + "x" * 300 + '"}',
    ],
)
def test_json_that_names_nobody(tmp_path, text):
    members = [("1.jpg",), ("1.json", text.encode())]
    found, rejects, _ = labels(tmp_path, *members, label="json", field="who")
    assert (found, rejects) == ([], [("1.jpg", "no_identity")])


# Hostile members


@pytest.mark.parametrize(
    "name",
    [
        "/etc/a.jpg",
        "../a.jpg",
        "a/../../b.jpg",
        "a//b.jpg",
        "a/./b.jpg",
        "./../a.jpg",
        "./",
        ".//a.jpg",
    ],
)
def test_names_that_lead_elsewhere(tmp_path, name):
    ids, rejects, _ = scanned(tmp_path, member(name) + member("b.jpg") + ZEROS * 2)
    assert ids == ["b.jpg"]
    # A regular file whose name ends in a slash is a folder of the oldest archives.
    wanted = [] if name == "./" else [(name.removeprefix("./"), "unsafe_name")]
    assert rejects == wanted


def test_names_with_nul(tmp_path):
    content = pax((b"path", b"a\0b.jpg")) + member("x.jpg") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == ([], [("a\0b.jpg", "unsafe_name")])


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"M", b"V", b"Z"])
def test_what_is_no_regular_file(tmp_path, kind):
    data = b"" if kind in b"12346" else b"x" * 700
    content = member("a.jpg", data, kind, link=b"/etc/passwd") + member("b.jpg") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == (["b.jpg"], [("a.jpg", "not_a_file")])


def test_sizes_of_links_and_folders_count_no_bytes(tmp_path):
    content = header(b"a.jpg", 5000, b"1") + header(b"f/", 5000, b"5") + member("b.jpg") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == (["b.jpg"], [("a.jpg", "not_a_file")])


@needs_tar
@pytest.mark.parametrize(
    "pieces", [1, 25, 26, 40]
)  # an old header has room for 4, each more for 21
@pytest.mark.parametrize(
    "options", [["gnu"], ["pax"], ["pax", "--sparse-version=0.0"], ["pax", "--sparse-version=0.1"]]
)
def test_sparse_files(tmp_path, options, pieces):
    folder = tmp_path / "f"
    folder.mkdir()
    with (folder / "1.jpg").open("wb") as stream:
        for piece in range(1, pieces + 1):
            stream.seek(piece << 16)
            stream.write(b"x" * 700)
    (folder / "2.jpg").write_bytes(b"y")
    command = ["tar", f"--format={options[0]}", *options[1:], "-S", "--hole-detection=raw"]
    subprocess.run(
        [*command, "-C", folder, "-cf", tmp_path / "s.tar", "1.jpg", "2.jpg"], check=True
    )
    ids, rejects, _ = scanned(tmp_path, (tmp_path / "s.tar").read_bytes())
    assert ids == ["2.jpg"]
    assert [reason for _, reason in rejects] == ["not_a_file"]


def test_names_that_are_no_text(tmp_path):
    content = member(b"a/\xff.jpg") + pax((b"path", b"\xfe.jpg")) + member("x") + member("b.jpg")
    ids, rejects, _ = scanned(tmp_path, content + ZEROS * 2)
    assert ids == ["b.jpg"]
    assert rejects == [("a/\\udcff.jpg", "unreadable_name"), ("\\udcfe.jpg", "unreadable_name")]


def test_member_too_large_for_a_face(tmp_path):
    size = MAX_FILE_BYTES + 1
    with (tmp_path / "a.tar").open("wb") as stream:  # sparse: nothing of it lies on the disk
        stream.write(header(b"a.jpg", size))
        stream.seek(512 + -(-size // 512) * 512)
        stream.write(member("b.jpg") + ZEROS * 2)
    items, listing = listed(tar_source(tmp_path / "a.tar", "none"))
    assert [item.image_id for item in items] == ["b.jpg"]
    assert [(r.image_id, r.reason) for r in listing.rejects] == [("a.jpg", "too_large")]


# Names and sizes that come before their member


def test_long_name_and_pax_header_speak_of_the_next_member_only(tmp_path):
    content = (
        member("././@LongLink", b"long.jpg\0", b"L")
        + member("././@LongLink", b"target\0", b"K")
        + member("short")
        + pax((b"path", b"pax.jpg"), (b"mtime", b"1.5"), (b"comment", b"a=b\nc"))
        + member("short")
        + member("last.jpg")
    )
    assert scanned(tmp_path, content + ZEROS * 2)[:2] == (["long.jpg", "pax.jpg", "last.jpg"], [])


def test_size_in_a_pax_header(tmp_path):
    content = pax((b"size", b"700")) + header(b"a.jpg", 0) + bytes(1024) + member("b.jpg")
    (tmp_path / "a.tar").write_bytes(content + ZEROS * 2)
    items, _ = listed(tar_source(tmp_path / "a.tar", "none"))
    assert [(item.image_id, item.length) for item in items] == [("a.jpg", 700), ("b.jpg", 1)]


def test_global_pax_header(tmp_path):
    content = pax((b"comment", b"0123"), kind=b"g") + member("a.jpg") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == (["a.jpg"], [])


def test_global_pax_header_speaks_of_all_that_follow(tmp_path):
    content = pax((b"path", b"all.jpg"), kind=b"g") + member("x") + pax((b"path", b"own.jpg"))
    content += member("x") + member("x") + ZEROS * 2
    assert scanned(tmp_path, content)[0] == ["all.jpg", "own.jpg", "all.jpg"]


def test_number_in_base_256(tmp_path):
    block = bytearray(header(b"a.jpg", 0))
    block[124:136] = b"\x80" + (700).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content = bytes(block) + bytes(1024) + member("b.jpg") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == (["a.jpg", "b.jpg"], [])


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_header_that_claims_gigabytes_is_not_read(tmp_path, kind):
    with (tmp_path / "a.tar").open("wb") as stream:
        stream.write(member("a.jpg") + header(b"bomb", 2 << 30, kind))
        stream.truncate(3 << 30)  # they are even there, but nothing of them lies on the disk
    source = tar_source(tmp_path / "a.tar", "none")
    tracemalloc.start()
    items, listing = listed(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.image_id for item in items] == ["a.jpg"]
    assert [(r.image_id, r.reason) for r in listing.rejects] == DAMAGED
    assert peak < 10 << 20


def test_chain_of_pax_headers(tmp_path):
    content = pax((b"path", b"a.jpg")) * 3000 + member("x") + ZEROS * 2
    assert scanned(tmp_path, content)[:2] == (["a.jpg"], [])


def test_global_pax_headers_do_not_pile_up(tmp_path):
    records = [(b"GNU.sparse.%d" % n, b"x" * 1000) for n in range(500)]
    content = b"".join(pax(*records[n : n + 50], kind=b"g") for n in range(0, 500, 50))
    (tmp_path / "a.tar").write_bytes(content + member("a.jpg") * 20 + ZEROS * 2)
    source = tar_source(tmp_path / "a.tar", "none")
    tracemalloc.start()
    listed(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


@pytest.mark.parametrize(
    "records",
    [
        b"nonsense",
        b"99 path=a.jpg\n",
        b"0 path=a.jpg\n",
        b"15 path=a.jpg\n",
        b"8 path\nx\n",
        b"-5 path=a.jpg\n",
        b"9" * 30 + b" path=a.jpg\n",
        record(b"size", b"-1"),
        record(b"size", b"9" * 5000),
        record(b"size", b"1e3"),
    ],
)
def test_damaged_pax_header(tmp_path, records):
    content = member("a.jpg") + member("././@PaxHeader", records, b"x") + member("b.jpg")
    assert scanned(tmp_path, content + ZEROS * 2)[:2] == (["a.jpg"], DAMAGED)


def test_many_members_need_little_memory(tmp_path):
    with (tmp_path / "a.tar").open("wb") as stream:
        for number in range(4000):
            stream.write(member(f"{number}.jpg"))
        stream.write(ZEROS * 2)
    source = tar_source(tmp_path / "a.tar", "none")
    tracemalloc.start()
    found = sum(1 for _ in source.items(Listing()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 4000
    assert peak < 6 << 20


# Archives that are not whole


def test_archive_cut_anywhere(tmp_path):
    sizes = [700, 0, 512, 1]
    members = [member(f"{n}.jpg", b"x" * size) for n, size in enumerate(sizes)]
    content = b"".join(members) + ZEROS * 20
    ends = np.cumsum([len(m) for m in members])
    data_ends = ends - [-size % 512 for size in sizes]
    for cut in range(512, len(content) + 1, 100):
        ids, rejects, listing = scanned(tmp_path, content[:cut])
        assert ids == [f"{n}.jpg" for n in range(4) if cut >= data_ends[n]]
        # One block of zeros is enough to know that nothing is missing.
        assert rejects == (DAMAGED if cut < ends[-1] + 512 else [])
        if rejects:
            assert f"at byte {[0, *ends][len(ids)]:,}:" in listing.rejects[0].detail


def test_damaged_header_in_the_middle(tmp_path):
    good = member("a.jpg") + member("b.jpg") + ZEROS * 2
    for place in range(1024, 1536, 7):
        content = bytearray(good)
        content[place] ^= 0x55
        ids, rejects, listing = scanned(tmp_path, bytes(content))
        assert (ids, rejects) == (["a.jpg"], DAMAGED)
        assert "at byte 1,024: " in listing.rejects[0].detail


@pytest.mark.parametrize("size", [8**11 - 1, 2**63, 2**80, -1, -512])
def test_size_beyond_the_file(tmp_path, size):
    content = member("a.jpg") + header(b"b.jpg", size) + ZEROS * 4
    ids, rejects, listing = scanned(tmp_path, content)
    assert (ids, rejects) == (["a.jpg"], DAMAGED)
    assert f"claims {size:,} bytes" in listing.rejects[0].detail


@pytest.mark.parametrize(
    "rest",
    [
        ZEROS * 2 + member("b.jpg") + ZEROS * 2,  # cat a.tar b.tar
        ZEROS + member("b.jpg") + ZEROS * 2,  # a block was never written
        ZEROS * 2 + b"x",
        bytes(2 << 20),  # space for a copy that is not finished
    ],
)
def test_more_behind_the_end(tmp_path, rest):
    ids, rejects, listing = scanned(tmp_path, member("a.jpg") + rest)
    assert (ids, rejects) == (["a.jpg"], DAMAGED)
    assert "1,024: zeros end the archive" in listing.rejects[0].detail


def test_label_counts_though_the_archive_is_cut_behind_it(tmp_path):
    content = member("1.jpg") + member("1.cls", b"7") + member("2.jpg") + header(b"2.cls", 1)
    ids, rejects, _ = scanned(tmp_path, content, "label")
    assert ids == ["1.jpg"]
    assert rejects == [*DAMAGED, ("2.jpg", "no_identity")]


def test_empty_archive(tmp_path):
    assert scanned(tmp_path, ZEROS * 20)[:2] == ([], [])


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x89PNG" + b"x" * 2000])
def test_what_is_no_archive(tmp_path, content):
    with pytest.raises(InputError, match=r"a\.tar is no tar archive"):
        scanned(tmp_path, content)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_archive(pictures, tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as archive:
        archive.add(pictures / NAMES[0], NAMES[0])
    with pytest.raises(InputError, match=r"is compressed.* unpack it once .*-d\)"):
        listed(tar_source(tmp_path / "a.tar"))


def with_all_headers():
    """Return an archive whose members have long names in GNU and in pax headers."""
    stream = io.BytesIO()
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
            for name in ("a/1.jpg", "b/" + "x" * 120 + ".png", "ä.jpg", "1.cls"):
                info = tarfile.TarInfo(name)
                info.size = 600
                archive.addfile(info, io.BytesIO(b"x" * 600))
        stream.seek(-(-len(stream.getvalue().rstrip(b"\0")) // 512) * 512)
    return stream.getvalue()


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    ids, rejects, _ = scanned(folder, with_all_headers())
    assert (len(ids), rejects) == (6, [])
    return folder


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=4), st.booleans())
def test_damage_behind_the_first_header_never_ends_a_listing(fuzz_folder, changes, is_checked):
    content = bytearray(with_all_headers())
    for place, value in changes:
        content[512 + place % (len(content) - 512)] = value
    for start in range(0, len(content) if is_checked else 0, 512):  # damage that checksums hide
        block = content[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    scanned(fuzz_folder, bytes(content), "label")
