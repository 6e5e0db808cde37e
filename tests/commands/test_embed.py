"""The embed command: what users meet, down to hostile files, full disks and Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from drawn_faces import face, write_faces
from PIL import Image

from sdd_ray import embed
from sdd_ray.config import main
from sdd_ray.errors import InputError, OutputError
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import open_dataset, read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST, OutputRun

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def do_embed(capsys):
    """Return a function that runs the command; it returns status, stdout and stderr."""

    def run(output, *words):
        status = main(EmbedConfig, embed.run, [f"output={output}", "resources.workers=1", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def folder(root):
    return ("source.kind=folder", f"source.path={root}")


def synthetic(identities, images):
    return (
        f"source.synthetic.num_identities={identities}",
        f"source.synthetic.images_per_identity={images}",
    )


HOSTILE = {
    "empty.jpg": "empty",
    "text.jpg": "not_an_image",
    "truncated.jpg": "truncated",
    "one.png": "too_small",
}


@pytest.fixture
def hostile(tmp_path):
    """A folder of a person with files that strangers have; and twelve good ones of two others."""
    root = tmp_path / "faces"
    write_faces(root, identities=2, images=6)
    person = root / "p"
    person.mkdir()
    good = face(2, 0)
    good.save(person / "good.jpg", quality=95)
    good.convert("CMYK").save(person / "cmyk.jpg")
    good.save(person / "animated.gif", save_all=True, append_images=[face(2, 1), face(2, 2)])
    deep = np.asarray(good.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(person / "sixteen.png")
    good.save(person / "really_png.jpg", format="PNG")
    (person / "empty.jpg").touch()
    (person / "text.jpg").write_text("no image, whatever its name says\n" * 20)
    (person / "truncated.jpg").write_bytes((person / "good.jpg").read_bytes()[:1500])
    Image.new("RGB", (1, 1)).save(person / "one.png")
    good.save(root / "nobody.jpg")
    (root / "Thumbs.db").write_bytes(b"\x00" * 100)
    (person / "notes.txt").write_text("taken in spring")
    return root


def test_every_hostile_file_is_embedded_or_counted(hostile, do_embed, tmp_path):
    # Shards of two, so that one holds nothing that can be embedded.
    words = (*folder(hostile), "max_reject_share=0.3", "images_per_shard=2")
    status, out, _ = do_embed(tmp_path / "embeddings", *words)
    assert status == 0
    dataset = open_dataset(str(tmp_path / "embeddings"), ["embed"])
    table = dataset.read(["image_id", "identity"])
    found = dict(zip(*(table[n].to_pylist() for n in ("image_id", "identity")), strict=True))
    good = {f"p/{n}" for n in ("good.jpg", "cmyk.jpg", "animated.gif", "sixteen.png")}
    assert {i for i, person in found.items() if person == "p"} == {*good, "p/really_png.jpg"}
    assert len(found) == 17

    listed = read_parquet(dataset.location / "rejects.parquet").to_pylist()
    wanted = {f"p/{name}": reason for name, reason in HOSTILE.items()}
    assert {r["image_id"]: r["reason"] for r in listed} == {**wanted, "nobody.jpg": "no_identity"}
    assert all(row["detail"] for row in listed)
    counts = dataset.manifest["counts"]
    assert counts["rejected"] == dict.fromkeys([*HOSTILE.values(), "no_identity"], 1)
    assert counts["rows_in"] == counts["rows_out"] + 5 == 22
    assert dataset.manifest["results"]["ignored_files"] == 2
    assert "embed: 17 of 22 images" in out
    assert "truncated 1" in out


def test_too_many_rejects_stop_the_run(hostile, do_embed, tmp_path):
    status, _, err = do_embed(tmp_path / "embeddings", *folder(hostile))
    assert status == 1
    assert "5 of 22 images had to be set aside" in err
    for reason in (*HOSTILE.values(), "no_identity"):
        assert f"{reason} 1" in err
    assert "max_reject_share=0.05; the first is nobody.jpg" in err
    assert not (tmp_path / "embeddings" / MANIFEST).exists()


def test_folder_without_people_says_so(do_embed, tmp_path):
    root = tmp_path / "flat"
    root.mkdir()
    face(0, 0).save(root / "a.png")
    status, _, err = do_embed(tmp_path / "embeddings", *folder(root))
    assert status == 1
    assert "no images that can be used (0 other files); set aside: no_identity 1" in err


@pytest.mark.slow
def test_folder_that_was_empty_is_listed_again(do_embed, tmp_path):
    root = tmp_path / "faces"
    root.mkdir()
    assert do_embed(tmp_path / "embeddings", *folder(root))[0] == 1
    write_faces(root, identities=1, images=2)
    status, out, _ = do_embed(tmp_path / "embeddings", *folder(root))
    assert status == 0
    assert "embed: 2 of 2 images" in out


def test_corrected_source_takes_the_folder_over(do_embed, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=2)
    assert do_embed(tmp_path / "embeddings", *folder(tmp_path / "facse"))[0] == 1
    assert do_embed(tmp_path / "embeddings", *folder(root))[0] == 0


def test_image_that_could_not_be_reached_is_tried_again(do_embed, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=1, images=2)
    (root / "000" / "late.png").symlink_to(tmp_path / "late.png")
    words = (*folder(root), "max_reject_share=0")
    status, _, err = do_embed(tmp_path / "embeddings", *words)
    assert status == 1
    assert "1 of 3 images had to be set aside (unreadable 1)" in err
    face(0, 2).save(tmp_path / "late.png")
    status, out, _ = do_embed(tmp_path / "embeddings", *words)
    assert status == 0
    assert "embed: 3 of 3 images" in out


@pytest.mark.slow
def test_folder_that_could_not_be_listed_is_listed_again(do_embed, monkeypatch, tmp_path):
    root = tmp_path / "faces"
    write_faces(root, identities=3, images=2)
    output = tmp_path / "embeddings"
    words = (*folder(root), "max_reject_share=1", "images_per_shard=2")
    entries = Location.entries

    def guarded(place):
        if place.uri == str(root / "001"):
            raise InputError("Permission denied")
        return entries(place)

    def killed(*_):
        raise OutputError("killed when all parts were finished")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "entries", guarded)
        patch.setattr(OutputRun, "complete", killed)
        status, _, err = do_embed(output, *words)
    assert (status, err.count("killed")) == (1, 1)
    first = output / "part-000000.parquet"
    before = first.stat().st_mtime_ns
    status, out, _ = do_embed(output, *words)
    assert status == 0
    assert "embed: 6 of 6 images" in out
    assert first.stat().st_mtime_ns == before
    unbroken = tmp_path / "unbroken"
    assert do_embed(unbroken, *words)[0] == 0
    digests = [open_dataset(str(place), ["embed"]).digest for place in (output, unbroken)]
    assert digests[0] == digests[1]


def test_missing_source(do_embed, tmp_path):
    status, _, err = do_embed(tmp_path / "embeddings", *folder(tmp_path / "nowhere"))
    assert status == 1
    assert f"source.path: no folder {tmp_path}/nowhere" in err


def test_unwritable_output(do_embed, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    status, _, err = do_embed(tmp_path / "file" / "embeddings", *synthetic(2, 2))
    assert status == 1
    assert f"{tmp_path}/file/embeddings" in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run([umount, "--lazy", str(place)], check=True)


def test_full_disk(do_embed, small_disk):
    words = (*synthetic(20, 6), "images_per_shard=60")
    status, _, err = do_embed(small_disk / "embeddings", *words)
    assert status == 1
    assert re.search(r"part-00000\d\.parquet: \[Errno 28\] No space left on device", err)
    assert len([line for line in err.splitlines() if "Errno" in line]) == 1
    names = os.listdir(small_disk / "embeddings")
    assert MANIFEST not in names
    assert not [name for name in names if name.endswith(".partial")]


def test_complete_output_is_left_alone(do_embed, tmp_path):
    output = tmp_path / "embeddings"
    status, first, _ = do_embed(output, *synthetic(2, 3))
    assert status == 0
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    status, again, err = do_embed(output, *synthetic(2, 3))
    assert (status, again, err) == (0, first, "")
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before
    status, _, err = do_embed(output, *synthetic(2, 4))
    assert status == 1
    assert "is complete with another configuration, which differs in source.synthetic" in err
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before


@pytest.mark.parametrize(
    ("sent", "more"),
    [
        pytest.param(signal.SIGINT, (), marks=pytest.mark.slow),
        pytest.param(
            signal.SIGKILL,
            ("resources.decode_workers=1", "ray.num_cpus=3"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interrupted_command_resumes_where_it_was(do_embed, tmp_path, sent, more):
    output = tmp_path / "embeddings"
    words = (*synthetic(40, 6), "images_per_shard=6")
    arguments = [f"output={output}", *words, "ray.num_cpus=1", "ray.dashboard=false", *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdd_ray.embed", *arguments],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell gives its background jobs a Ctrl-C that they ignore, and so would this one be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        wait_until((output / "part-000000.parquet").exists, process)
        os.killpg(process.pid, sent)  # As Ctrl-C does: to the whole group.
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (output / INCOMPLETE).exists()
    assert not (output / MANIFEST).exists()
    if sent == signal.SIGINT:
        assert process.returncode == 130, err
        assert "interrupted; the same command goes on from what is finished" in err
        assert "Traceback" not in err
        assert read_json(Location(str(output / INCOMPLETE)))["seconds"] > 0

    records = (output / "_work" / "parts").glob("*.json")
    finished = [output / f"{record.stem}.parquet" for record in records]
    before = {part: part.stat().st_mtime_ns for part in finished}
    assert 0 < len(finished) < 40
    assert do_embed(output, *words)[0] == 0
    assert {part: part.stat().st_mtime_ns for part in finished} == before
    unbroken = tmp_path / "unbroken"
    assert do_embed(unbroken, *words)[0] == 0
    digests = [open_dataset(str(place), ["embed"]).digest for place in (output, unbroken)]
    assert digests[0] == digests[1]


def wait_until(is_so, process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
