"""Paths and URIs: atomic writes, listing, and errors that name the place, on disk and on S3."""

import errno
import os
import pickle

import pytest

from sdd_ray.errors import InputError, OutputError
from sdd_ray.store.location import Location


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder, local and on S3."""
    if request.param == "local":
        return Location(str(tmp_path))
    return Location(f"s3://{request.getfixturevalue('s3_bucket')}/below")


def test_join_and_kinds():
    assert (Location("a/b") / "c").uri == "a/b/c"
    assert (Location("s3://b/") / "c").uri == "s3://b/c"
    assert Location("a").is_local
    assert not Location("s3://b").is_local


def test_absolute_path_holds_in_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Location("a").absolute().uri == str(tmp_path / "a")
    assert Location("~/a").absolute().uri == "/home/somebody/a"
    assert Location("s3://b/a").absolute().uri == "s3://b/a"


def test_location_travels():
    assert pickle.loads(pickle.dumps(Location("a"))) == Location("a")  # noqa: S301 - made here


def test_unknown_scheme():
    with pytest.raises(InputError, match="ftp://a/b: unknown scheme ftp://"):
        Location("ftp://a/b").exists()


def test_round_trip(folder):
    file = folder / "x" / "y.bin"
    assert not file.exists()
    file.write_bytes(b"one")
    file.write_bytes(b"two")
    assert file.exists()
    assert not file.is_folder()
    assert file.read_bytes() == b"two"
    with file.open() as stream:
        stream.seek(1)
        assert stream.read() == b"wo"


def test_listing_is_sorted_and_tells_folders(folder):
    for name in ("b.txt", "a/1", "a-b", "Z", "a/2"):
        (folder / name).write_bytes(b"x")
    found = [(entry.name, entry.is_folder) for entry in folder.entries()]
    assert found == [("Z", False), ("a", True), ("a-b", False), ("b.txt", False)]
    assert folder.names() == ["Z", "a", "a-b", "b.txt"]
    assert (folder / "a").is_folder()
    assert (folder / "a").names() == ["1", "2"]


def test_remove_file_twice(folder):
    file = folder / "a"
    file.write_bytes(b"x")
    (folder / "b").write_bytes(b"x")
    file.remove()
    file.remove()
    assert folder.names() == ["b"]


def test_remove_tree(folder):
    (folder / "t" / "deep" / "a").write_bytes(b"x")
    (folder / "other").write_bytes(b"x")
    (folder / "t").remove_tree()
    assert not (folder / "t").exists()
    assert not (folder / "t" / "deep" / "a").exists()
    assert (folder / "other").exists()


def test_missing_file_and_folder(folder):
    with pytest.raises(InputError, match=r"cannot read .*missing"):
        (folder / "missing").read_bytes()
    with pytest.raises(InputError, match=r"cannot list the folder .*missing"):
        list((folder / "missing").entries())


def test_missing_bucket(s3_bucket):
    with pytest.raises(InputError, match="s3://no-such-bucket"):
        Location("s3://no-such-bucket/a").read_bytes()
    with pytest.raises(OutputError, match="cannot write s3://no-such-bucket/a"):
        Location("s3://no-such-bucket/a").write_bytes(b"x")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        Location(str(tmp_path)).read_bytes()


def test_write_below_a_file_names_the_place(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    place = Location(str(tmp_path / "file" / "a.bin"))
    with pytest.raises(OutputError, match=f"cannot write {place.uri}: "):
        place.write_bytes(b"y")
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    place = Location(str(tmp_path / "a.bin"))
    place.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    if call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: .*No space left on device"):
        place.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert place.read_bytes() == b"old"


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Location(str(tmp_path / "a.bin")).write_bytes(b"new")
    assert os.listdir(tmp_path) == []


def test_file_appears_under_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync

    def look(descriptor):
        seen.append(os.listdir(tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    Location(str(tmp_path / "a.bin")).write_bytes(b"new")
    assert len(seen) == 1
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(".a.bin.")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_removing_what_cannot_be_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot remove"):
        Location(str(tmp_path / "folder")).remove()
    with pytest.raises(OutputError, match="cannot remove"):
        Location(str(tmp_path / "missing")).remove_tree()
