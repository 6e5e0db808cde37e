"""Packed sources through the real engine give what the folder they were made from gives."""

import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_faces import write_faces
from quality_models import made_model, write_model
from tfrecords import write as write_tfrecords

from sdd_ray import embed, score
from sdd_ray.config import load_tree
from sdd_ray.core.alignment import ARCFACE_TEMPLATE
from sdd_ray.engine import inference
from sdd_ray.engine.image_index import list_images
from sdd_ray.errors import TooManyRejectsError
from sdd_ray.formats.reading import Album
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import EmbedConfig, ScoreConfig
from sdd_ray.store.dataset import open_dataset, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun

pytestmark = pytest.mark.usefixtures("ray_session")

PEOPLE, IMAGES = 4, 5


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder of drawn faces, and the sorted names of its files."""
    root = tmp_path_factory.mktemp("packed") / "faces"
    write_faces(root, identities=PEOPLE, images=IMAGES)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    assert len(names) == PEOPLE * IMAGES
    return root, names


def as_tar(root, names, target):
    # Two shards of the same set; the names are unique over both, as file names in a folder are.
    (target / "shards").mkdir()
    for number in range(2):
        with tarfile.open(target / "shards" / f"{number}.tar", "w") as archive:
            for name in names[number::2]:
                archive.add(root / name, name)
    return {"kind": "tar", "path": str(target / "shards")}, {
        n: f"{i % 2}.tar/{n}" for i, n in enumerate(names)
    }


def as_parquet(root, names, target):
    rows = [
        {"image": (root / n).read_bytes(), "image_id": n, "identity": n.split("/")[0]}
        for n in names
    ]
    pq.write_table(pa.Table.from_pylist(rows), target / "faces.parquet", row_group_size=3)
    options = {"parquet": {"image_id": "image_id"}}
    return {"kind": "parquet", "path": str(target / "faces.parquet"), **options}, {}


def as_list(root, names, target):
    lines = [f"{n}\t{n.split('/')[0]}" for n in names]
    (target / "faces.txt").write_text("\n".join(lines))
    options = {"list_file": {"root": str(root)}}
    return {"kind": "list", "path": str(target / "faces.txt"), **options}, {}


def as_recordio(root, names, target):
    lines = []
    with (target / "faces.rec").open("wb") as records, (target / "faces.idx").open("w") as index:
        for key, name in enumerate(names):
            index.write(f"{key}\t{records.tell()}\n")
            image = (root / name).read_bytes()
            data = struct.pack("<IfQQ", 0, float(key // IMAGES), key, 0) + image
            records.write(struct.pack("<II", 0xCED7230A, len(data)) + data + bytes(-len(data) % 4))
            lines.append(f"{key}\t{key // IMAGES}\t{name}\n")
    (target / "faces.lst").write_text("".join(lines))
    options = {"recordio": {"names": str(target / "faces.lst")}, "identity": "first_folder"}
    return {"kind": "recordio", "path": str(target / "faces.rec"), **options}, {}


def as_bare_recordio(root, names, target):
    """Without index and names: keys and labels are numbers."""
    as_recordio(root, names, target)
    (target / "faces.idx").unlink()
    keys = {name: str(key) for key, name in enumerate(names)}
    return {"kind": "recordio", "path": str(target / "faces.rec")}, keys


def as_tfrecord(root, names, target):
    """In two shards, of which keys are file and byte; labels are the names of the folders."""
    shards = [
        [(name.split("/")[0], (root / name).read_bytes()) for name in some]
        for some in (names[:7], names[7:])
    ]
    lines = write_tfrecords(target, "faces", shards)
    (target / "faces.index").write_text("".join(lines))
    parts = [line.split("\t") for line in lines]
    keys = {n: f"faces-{int(p[1]):05d}/{p[2]}" for n, p in zip(names, parts, strict=True)}
    return {"kind": "tfrecord", "path": str(target / "faces.index")}, keys


def as_bin(root, names, target):
    """Which names nobody."""
    images = [(root / name).read_bytes() for name in names]
    content = pickle.dumps((images, [True] * (len(images) // 2)))
    (target / "faces.bin").write_bytes(content)
    keys = {name: f"{number:06d}" for number, name in enumerate(names)}
    return {"kind": "bin", "path": str(target / "faces.bin")}, keys


PACKERS = [as_tar, as_parquet, as_list, as_recordio, as_bare_recordio, as_tfrecord, as_bin]


def rows_of(output):
    names = ["image_id", "identity", "embedding", "norm", "content"]
    return {row["image_id"]: row for row in output.read(names).to_pylist()}


def config_of(output, source, **keys):
    tree = {"output": str(output), "source": source, "images_per_shard": 6}
    return load_tree(EmbedConfig, {**tree, "resources": {"workers": 2}, **keys})


@pytest.fixture(scope="module")
def by_folder(faces, tmp_path_factory):
    output = tmp_path_factory.mktemp("folder") / "embeddings"
    embed.run(config_of(output, {"kind": "folder", "path": str(faces[0])}))
    return rows_of(open_dataset(str(output), ["embed"]))


_ALSO = (as_recordio, as_list)
"""Those that every run tries; the readers of all have tests of their own."""


@pytest.mark.parametrize(
    "packer", [p if p in _ALSO else pytest.param(p, marks=pytest.mark.slow) for p in PACKERS]
)
def test_embeddings_are_those_of_the_folder(faces, by_folder, packer, tmp_path):
    source, renamed = packer(*faces, tmp_path)
    embed.run(config_of(tmp_path / "embeddings", source))
    found = rows_of(open_dataset(str(tmp_path / "embeddings"), ["embed"]))
    assert found.keys() == {renamed.get(name, name) for name in by_folder}
    for name, wanted in by_folder.items():
        one = found[renamed.get(name, name)]
        if packer is not as_bin:
            assert int(one["identity"]) == int(wanted["identity"])
        assert one["content"] == wanted["content"]
        np.testing.assert_allclose(one["embedding"], wanted["embedding"], atol=1e-5)


@pytest.mark.parametrize("packer", PACKERS)
def test_images_are_found_by_their_keys(faces, packer, tmp_path):
    """As train, score and the reports look for them: in any order, with some that are not there."""
    root, names = faces
    tree, renamed = packer(root, names, tmp_path)
    wanted = [renamed.get(n, n) for n in names[::-3]] + ["nobody/0.png"]
    source = open_source(config_of(tmp_path, tree).source)
    album = Album(source, pa.chunked_array([wanted])).faces(range(len(wanted)))
    folder = open_source(config_of(tmp_path, {"kind": "folder", "path": str(root)}).source)
    same = Album(folder, pa.chunked_array([names[::-3]])).faces(range(len(wanted) - 1))
    assert album[-1] is None
    for face, other in zip(album[:-1], same, strict=True):
        np.testing.assert_array_equal(face, other)
    table = locate(source, pa.chunked_array([wanted]))
    assert table["image_id"].to_pylist() == wanted


def test_second_image_of_a_key_is_set_aside(faces, tmp_path):
    root, names = faces
    tree, _ = as_list(root, [*names, names[3]], tmp_path)
    place = Location(str(tmp_path / "o"))
    output = OutputRun(place, "embed", config_of(place.uri, tree), {})
    total, listing = list_images(open_source(config_of(tmp_path, tree).source), 6, output)
    assert total == len(names)
    assert [(r.image_id, r.reason) for r in listing.rejects] == [(names[3], "duplicate_image_id")]


def test_landmarks_go_with_the_images_of_packed_files(faces, by_folder, tmp_path):
    """Those of the template leave a crop as it is; one image has none."""
    source, renamed = as_tar(*faces, tmp_path)
    points = " ".join(str(number) for number in ARCFACE_TEMPLATE.ravel())
    known = sorted(renamed.values())[1:]
    (tmp_path / "points.txt").write_text("".join(f"{name} {points}\n" for name in known))
    source["landmarks"] = str(tmp_path / "points.txt")
    embed.run(config_of(tmp_path / "embeddings", source, max_reject_share=0.1))
    found = open_dataset(str(tmp_path / "embeddings"), ["embed"])
    assert found.manifest["counts"]["rejected"] == {"no_landmarks": 1}
    contents = {name: row["content"] for name, row in rows_of(found).items()}
    assert contents == {
        new: by_folder[name]["content"] for name, new in renamed.items() if new in known
    }


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


@pytest.mark.slow
def test_lost_part_of_an_archive_stops_the_run_until_it_is_mended(faces, by_folder, tmp_path):
    source, renamed = as_tar(*faces, tmp_path)
    shard = tmp_path / "shards" / "1.tar"
    whole = cut(shard)
    config = config_of(tmp_path / "embeddings", source, max_reject_share=0.5)
    with pytest.raises(TooManyRejectsError, match=r"1 place.*1\.tar.*source\.skip_damaged=true"):
        embed.run(config)
    shard.write_bytes(whole)
    embed.run(config)
    found = open_dataset(config.output, ["embed"])
    assert set(rows_of(found)) == set(renamed.values())
    assert found.manifest["counts"]["rejected"] == {}


@pytest.mark.slow
def test_damaged_files_can_be_left_out(faces, tmp_path):
    source, _ = as_tar(*faces, tmp_path)
    cut(tmp_path / "shards" / "1.tar")
    (tmp_path / "shards" / "2.tar").write_bytes(b"no archive" * 200)
    source["skip_damaged"] = True
    embed.run(config_of(tmp_path / "embeddings", source, max_reject_share=0.5))
    found = open_dataset(str(tmp_path / "embeddings"), ["embed"])
    assert found.manifest["counts"]["rejected"] == {"damaged_archive": 1, "damaged_file": 1}
    assert 10 < found.manifest["counts"]["rows_out"] < 20
    keys = found.read(["image_id"])["image_id"]
    images = open_source(config_of(tmp_path, source).source)
    assert all(face is not None for face in Album(images, keys).faces(range(len(keys))))


@pytest.mark.slow
def test_file_that_was_replaced_meanwhile_is_listed_and_embedded_again(
    faces, by_folder, tmp_path, monkeypatch
):
    root, names = faces
    source, _ = as_parquet(root, names, tmp_path)
    config = config_of(tmp_path / "embeddings", source)
    process = inference._process

    def interrupted(*args):
        yield next(process(*args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inference, "_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed.run(config)
    # The same keys in the same rows, and the pictures of others.
    file = tmp_path / "faces.parquet"
    table = pq.read_table(file)
    others = table["image"].take(pa.array(np.arange(len(names))[::-1]))
    pq.write_table(table.set_column(0, "image", others), file, row_group_size=3)
    embed.run(config)
    found = rows_of(open_dataset(config.output, ["embed"]))
    for name, other in zip(names, reversed(names), strict=True):
        assert found[name]["content"] == by_folder[other]["content"]


@pytest.mark.slow
def test_qualities_and_the_best_images_are_those_of_the_folder(faces, tmp_path):
    root, names = faces
    model = write_model(tmp_path / "model", made_model())
    packed, _ = as_recordio(root, names, tmp_path)
    tables = []
    for number, source in enumerate(({"kind": "folder", "path": str(root)}, packed)):
        output = str(tmp_path / str(number))
        tree = {"model": model, "output": output, "source": source, "best": {"count": 2}}
        score.run(load_tree(ScoreConfig, {**tree, "images_per_shard": 6}))
        whole = open_dataset(output, ["score"]).read(["image_id", "quality", "raw"])
        best = read_parquet(Location(output) / "best.parquet")
        assert best.num_rows == 2 * PEOPLE
        tables.append((whole.sort_by("image_id"), best))
    for one, other in zip(*tables, strict=True):
        assert one.equals(other)
