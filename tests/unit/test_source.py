"""Sources list images once, sorted by whole image_id, and set aside what names no person."""

import os
import shutil
import socket

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sdd_ray.errors import InputError
from sdd_ray.formats.drawn import SyntheticSource
from sdd_ray.formats.folder import FolderSource
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Item, Listing, files_at, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import SourceConfig, SyntheticConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject
from sdd_ray.synthetic.samples import SyntheticSet, draw


def folder_source(root, identity="first_folder"):
    return open_source(SourceConfig(kind="folder", path=str(root), identity=identity))


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(source):
    listing = Listing()
    return [(item.image_id, item.identity) for item in source.items(listing)], listing


def read(source, image_id):
    """Return the face with a key that came from elsewhere."""
    return read_face(source, from_table(locate(source, pa.chunked_array([[image_id]])))[0])


def test_images_are_sorted_by_their_whole_key(tmp_path):
    names = ["b/1.jpg", "a/2.jpg", "a/10.jpg", "a-b/1.jpg", "a/sub/1.jpg", "a.b/1.png", "A/z.JPG"]
    make(tmp_path, *names)
    images, listing = listed(folder_source(tmp_path))
    assert [image_id for image_id, _ in images] == sorted(names)
    assert listing == Listing()


def test_order_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "a/2.jpg", "a-/1.jpg", "b/1.jpg")
    wanted = listed(folder_source(tmp_path))
    entries = Location.entries
    monkeypatch.setattr(Location, "entries", lambda self: reversed(list(entries(self))))
    assert listed(folder_source(tmp_path)) == wanted


@pytest.mark.parametrize(
    ("rule", "deep"), [("first_folder", "a"), ("parent_folder", "a/b/c"), ("none", None)]
)
def test_how_a_file_names_its_person(tmp_path, rule, deep):
    make(tmp_path, "a/b/c/1.jpg")
    assert listed(folder_source(tmp_path, rule))[0] == [("a/b/c/1.jpg", deep)]


def test_files_outside_the_folder_of_a_person(tmp_path):
    make(tmp_path, "1.jpg", "a/2.jpg")
    for rule in ("first_folder", "parent_folder"):
        images, listing = listed(folder_source(tmp_path, rule))
        assert images == [("a/2.jpg", "a")]
        assert listing.rejects == [Reject("1.jpg", "no_identity", "not in a folder of a person")]
    assert listed(folder_source(tmp_path, "none"))[0] == [("1.jpg", None), ("a/2.jpg", None)]


def test_files_that_are_no_images_are_counted(tmp_path):
    make(tmp_path, "a/1.JpEg", "a/notes.txt", "a/jpg", "README", "a/2.jpg.part", "a/.jpg.swp")
    images, listing = listed(folder_source(tmp_path))
    assert images == [("a/1.JpEg", "a")]
    assert listing.ignored_files == 5
    assert listing.rejects == []


def test_extensions_can_be_chosen_in_any_case(tmp_path):
    make(tmp_path, "a/1.jpg", "a/2.XYZ")
    config = SourceConfig(kind="folder", path=str(tmp_path), extensions=("XyZ",))
    assert listed(open_source(config))[0] == [("a/2.XYZ", "a")]


def test_missing_root(tmp_path):
    make(tmp_path, "file.jpg")
    for place in (tmp_path / "missing", tmp_path / "file.jpg"):
        with pytest.raises(InputError, match=f"source.path: no folder {place}"):
            listed(folder_source(place))


def forbid(monkeypatch, folder):
    entries = Location.entries

    def guarded(self):
        if self.uri == str(folder):
            raise InputError(f"cannot list the folder {self.uri}: Permission denied")
        return entries(self)

    monkeypatch.setattr(Location, "entries", guarded)


def test_folder_that_cannot_be_listed_is_set_aside(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    forbid(monkeypatch, tmp_path / "b")
    images, listing = listed(folder_source(tmp_path))
    assert [image_id for image_id, _ in images] == ["a/1.jpg", "c/1.jpg"]
    [reject] = listing.rejects
    assert (reject.image_id, reject.reason) == ("b/", "unreadable_folder")
    assert "Permission denied" in reject.detail


def test_root_that_cannot_be_listed_ends_the_run(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg")
    forbid(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="Permission denied"):
        listed(folder_source(tmp_path))


def test_folder_that_vanishes_while_listing_is_set_aside(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    listing = Listing()
    images = folder_source(tmp_path).items(listing)
    assert next(images) == Item("a/1.jpg", "a")
    shutil.rmtree(tmp_path / "b")
    assert list(images) == []
    assert [reject.reason for reject in listing.rejects] == ["unreadable_folder"]


def test_names_that_are_no_text_are_set_aside(tmp_path):
    make(tmp_path, "a/1.jpg")
    try:
        os.makedirs(os.fsencode(tmp_path) + b"/a/d\xff")
        with open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb") as stream:
            stream.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images, listing = listed(folder_source(tmp_path))
    assert images == [("a/1.jpg", "a")]
    shown = {(reject.image_id, reject.reason) for reject in listing.rejects}
    assert shown == {("a/d\\udcff", "unreadable_name"), ("a/\\udcff.jpg", "unreadable_name")}
    assert all(reject.image_id.isascii() for reject in listing.rejects)


def test_other_scripts_are_text(tmp_path):
    make(tmp_path, "žofie/ä 1.jpg", "李/1.jpg")
    images, _ = listed(folder_source(tmp_path))
    assert images == [("žofie/ä 1.jpg", "žofie"), ("李/1.jpg", "李")]


@pytest.mark.timeout(20)
def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "root"
    make(tmp_path, "elsewhere/1.jpg")
    make(root, "a/1.jpg", "b/1.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    # Each walk into one of the two finds both of them again: 2^40 folders without a guard.
    for name in ("a", "b"):
        (root / name / "x").symlink_to(root / "a")
        (root / name / "y").symlink_to(root / "b")
    (tmp_path / "alias").symlink_to(root)
    images, listing = listed(folder_source(tmp_path / "alias"))
    assert [image_id for image_id, _ in images] == [
        "a/1.jpg",
        "a/y/1.jpg",
        "b/1.jpg",
        "b/x/1.jpg",
        "linked/1.jpg",
    ]
    loops = {reject.image_id for reject in listing.rejects if reject.reason == "folder_loop"}
    assert loops == {"a/x/", "a/y/x/", "a/y/y/", "b/y/", "b/x/x/", "b/x/y/"}
    assert len(listing.rejects) == len(loops)


def test_broken_links_do_not_end_the_listing(tmp_path):
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "itself").symlink_to("itself")
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere")
    images, listing = listed(folder_source(tmp_path))
    assert [image_id for image_id, _ in images] == ["a/1.jpg", "a/gone.jpg"]
    assert listing.ignored_files == 1
    with pytest.raises(InputError, match=r"cannot read .*gone\.jpg"):
        read(folder_source(tmp_path), "a/gone.jpg")


def test_image_is_read_by_its_key(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    assert np.array_equal(read(folder_source(tmp_path), "a/1.png"), pixels)


def test_source_on_s3(s3_bucket):
    root = Location(f"s3://{s3_bucket}/faces")
    for name in ("b/1.jpg", "a/2.jpg", "a-b/1.jpg", "notes.txt", "0.jpg"):
        (root / name).write_bytes(b"x")
    images, listing = listed(folder_source(root.uri))
    assert images == [("a-b/1.jpg", "a-b"), ("a/2.jpg", "a"), ("b/1.jpg", "b")]
    assert listing.ignored_files == 1
    assert [reject.image_id for reject in listing.rejects] == ["0.jpg"]


def test_relative_root_holds_in_another_working_directory(tmp_path, monkeypatch):
    make(tmp_path, "faces/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    source = folder_source("faces")
    assert isinstance(source, FolderSource)
    monkeypatch.chdir("/")
    assert listed(source)[0] == [("a/1.jpg", "a")]


def test_synthetic_source():
    config = SyntheticConfig(seed=3, num_identities=12, images_per_identity=11, first_identity=995)
    source = open_source(SourceConfig(synthetic=config))
    images, listing = listed(source)
    assert len(images) == len(set(images)) == 12 * 11
    assert [image_id for image_id, _ in images] == sorted(image_id for image_id, _ in images)
    assert listing == Listing()
    assert {person for _, person in images} == {f"{n:06d}" for n in range(995, 1007)}
    assert all(person in image_id.split("/") for image_id, person in images)
    faces = SyntheticSet(3, 12, 11, 995, config.degraded_share)
    assert source == SyntheticSource(faces)
    image_id = images[17][0]
    assert np.array_equal(read(source, image_id), draw(faces, image_id).image)
    assert read(source, image_id).shape == (112, 112, 3)


@pytest.mark.parametrize(
    "image_id", ["../secret.png", "/etc/passwd", "a/../../x.png", "a//b.png", "a\0.png"]
)
def test_ids_of_strangers_lead_nowhere_else(tmp_path, image_id):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "secret.png")
    with pytest.raises(InputError, match="is no path below"):
        read(folder_source(root), image_id)


def test_pipe_does_not_keep_its_reader_waiting(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x.jpg")
    with pytest.raises(InputError, match="no regular file"):
        read(folder_source(tmp_path), "a/x.jpg")


def test_what_is_no_file_is_set_aside(tmp_path):
    make(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "a" / "socket.jpg"))  # its length is limited
        images, listing = listed(folder_source(tmp_path))
    assert images == [("a/1.jpg", "a")]
    assert {(reject.image_id, reject.reason) for reject in listing.rejects} == {
        (f"a/{name}.jpg", "not_a_file") for name in ("pipe", "device", "socket")
    }


def test_file_too_large_for_a_face_is_not_read(tmp_path):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "x.jpg").open("wb") as stream:
        stream.truncate((64 << 20) + 1)  # a sparse file: nothing of it lies on the disk
    with pytest.raises(ImageRejectedError, match="too_large"):
        read(folder_source(tmp_path), "a/x.jpg")


@pytest.mark.timeout(20)
def test_packed_files_below_a_link_that_leads_back_are_found_once(tmp_path):
    make(tmp_path, "a/1.tar", "b/c/2.tar", "b/notes.txt")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert files_at(Location(str(tmp_path)), ".tar")[1] == ["a/1.tar", "b/c/2.tar"]
