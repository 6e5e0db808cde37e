"""Labels of whole datasets through the real engine: against scipy, and against themselves."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from embedding_sets import clean, degraded, mislabelled, one_big, tiny
from label_runs import (
    Labeller,
    assert_equals_scipy,
    column,
    digest,
    distances_by_scipy,
    identities,
    manifest,
    rejects,
)
from made_datasets import Rows, read_rows, write_embeddings
from PIL import Image

from sdd_ray import label
from sdd_ray.config import load_tree, main
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.similarity import normalise
from sdd_ray.engine import label_plan, labelling
from sdd_ray.engine.progress import Progress
from sdd_ray.errors import InputError, ResourceError, TooManyRejectsError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.onnx_recogniser import OnnxRecogniser
from sdd_ray.store.run import INCOMPLETE, MANIFEST, parquet_bytes, read_records

pytestmark = pytest.mark.usefixtures("ray_session", "small_shards")


@pytest.fixture(scope="module")
def degraded_labels(ray_session, small_shards, tmp_path_factory):
    """Labels of the degraded set by one worker, from one file, in order and unbroken."""
    return Labeller(tmp_path_factory.mktemp("degraded"))(Rows(*degraded()))


def test_exact_equals_scipy_on_poor_images(degraded_labels):
    assert_equals_scipy(degraded_labels, *degraded())


@pytest.mark.parametrize("make", [clean, mislabelled])
def test_exact_equals_scipy(do_label, make):
    assert_equals_scipy(do_label(Rows(*make())), *make())


def test_tiny_identities_equal_scipy_and_single_images_get_no_label(do_label):
    unit, codes = tiny()
    labels = do_label(Rows(unit, codes))
    assert_equals_scipy(labels, unit, codes)
    alone = np.bincount(codes)[codes] == 1
    rows = read_rows(labels, "label", ["image_id", "distance", "pseudo_label", "reason"])
    for row, is_alone in zip(rows, alone, strict=True):
        found = (row["distance"] is None, row["pseudo_label"] is None, row["reason"])
        assert found == ((True, True, "no_mated_comparison") if is_alone else (False, False, None))
    results = manifest(labels)["results"]
    assert results["unlabelled"] == {"no_mated_comparison": int(alone.sum())}
    assert results["labelled"] + int(alone.sum()) == len(codes)


def test_sampled_is_near_exact_and_the_same_again(do_label):
    unit, codes = degraded()
    wanted = distances_by_scipy(unit, codes)
    one = do_label(Rows(unit, codes), method="sampled")
    again = do_label(Rows(unit, codes), method="sampled", num_files=5, seed=3)
    distance = column(one, "distance")
    assert np.corrcoef(distance, wanted)[0, 1] > 0.99
    # Twelve rounds of some ten mated and 24 nonmated comparisons; a few similarities more or less
    # move a label by their spread, 1/8, over the square root of their number.
    assert abs(np.mean(distance - wanted)) < 0.02
    assert np.sqrt(np.mean((distance - wanted) ** 2)) < 0.04
    assert digest(again) == digest(one)


def test_samples_settle_labels_within_a_bound_that_holds(do_label, monkeypatch):
    monkeypatch.setattr(labelling, "SAMPLE_SIZES", (60, 250))
    unit, codes = one_big()
    labels = do_label(Rows(unit, codes), exact={"tolerance": 0.03})
    error = np.abs(column(labels, "distance") - distances_by_scipy(unit, codes))
    bound = column(labels, "error_bound")
    assert (error <= bound + 1e-6).all()
    assert (bound <= 0.03).all()
    assert error.max() > 1e-5, "the set is too easy to tell a bound from none"
    settled = manifest(labels)["results"]["settled_by"]
    assert set(settled) == {"certificate", "reference", "all_images"}
    assert sum(settled.values()) == len(codes)
    assert manifest(labels)["results"]["largest_error_bound"] == pytest.approx(bound.max())


def test_samples_do_not_depend_on_workers_files_or_order(do_label, monkeypatch):
    monkeypatch.setattr(labelling, "SAMPLE_SIZES", (60, 250))
    rows, exact = Rows(*one_big()), {"tolerance": 0.03}
    one = do_label(rows, exact=exact)
    many = {"workers": 3, "cpus_per_worker": 0.5}
    assert digest(do_label(rows, 5, 7, exact=exact, resources=many)) == digest(one)
    other = do_label(rows, exact={"tolerance": 0.03, "seed": 1})
    assert digest(other) != digest(one), "another seed draws other samples"


@pytest.mark.parametrize("tolerance", [pytest.param(0.0, marks=pytest.mark.slow), 0.02])
def test_pieces_of_a_large_identity_give_the_labels_of_the_whole(do_label, monkeypatch, tolerance):
    monkeypatch.setattr(labelling, "SAMPLE_SIZES", (60, 250))
    unit, codes = one_big()  # 600 of 690 images are of one identity
    exact = {"tolerance": tolerance}
    pieces = do_label(Rows(unit, codes), 3, 1, exact=exact)
    assert len(open_dataset(pieces, ["label"]).files) > 10
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", 1000)
    whole = do_label(Rows(unit, codes), exact=exact)
    assert len(open_dataset(whole, ["label"]).files) == 1
    atol = 1e-6 if tolerance == 0 else 2 * tolerance
    for name in ("distance", "mated_q50", "nonmated_q50", "nonmated_std"):
        np.testing.assert_allclose(column(pieces, name), column(whole, name), atol=atol)
    assert identities(pieces) == identities(whole)


def test_interrupted_run_looks_unfinished_and_resumes(
    degraded_labels, monkeypatch, tmp_path, capsys
):
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*degraded()))
    output = str(tmp_path / "labels")
    argv = [f"embeddings={embeddings}", f"output={output}"]
    argv += ["resources.workers=1", "exact.tolerance=0"]

    def interrupt(progress, items, rejected=0):
        if progress.stage == "label":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        assert main(LabelConfig, label.run, argv) == 130
    assert "goes on from what is finished" in capsys.readouterr().err
    place = Location(output)
    assert (place / INCOMPLETE).exists()
    assert not (place / MANIFEST).exists()
    with pytest.raises(InputError, match="not complete: run the command that writes it once more"):
        open_dataset(output, ["label"])

    finished = read_records(place / "_work/raw")
    assert 0 < len(finished) < len(open_dataset(degraded_labels, ["label"]).files)
    raw = {name: Path(output, "_work/raw", f"{name}.parquet") for name in finished}
    written = {name: file.stat().st_mtime_ns for name, file in raw.items()}
    scale = labelling.scale_labels

    def check_and_scale(*arguments):
        assert {name: file.stat().st_mtime_ns for name, file in raw.items()} == written
        return scale(*arguments)

    monkeypatch.setattr(labelling, "scale_labels", check_and_scale)
    assert main(LabelConfig, label.run, argv) == 0
    assert digest(output) == digest(degraded_labels)
    assert not (place / INCOMPLETE).exists()
    assert main(LabelConfig, label.run, argv) == 0
    assert "label: 360 of 360" in capsys.readouterr().out


def test_one_identity_alone_is_an_error(do_label):
    unit, _ = clean()
    with pytest.raises(InputError, match="no image could be labelled"):
        do_label(Rows(unit, np.zeros(len(unit), np.int64)))


def test_unusable_rows_are_set_aside_and_counted(do_label):
    unit, codes = clean()
    rows = Rows(unit.copy(), codes)
    rows.embeddings[5] = 0.0
    rows.embeddings[17, 3] = np.nan
    rows.embeddings[200, 0] = np.inf
    rows.image_ids[30] = rows.image_ids[100]  # one key, two people
    rows.content[41] = rows.content[40]  # equal pixels of one person
    rows.content[60] = rows.content[300]  # equal pixels of two people
    bad = [5, 17, 30, 41, 100, 200]
    labels = do_label(rows)
    assert rejects(labels) == sorted(
        [
            (rows.image_ids[5], "zero_embedding"),
            (rows.image_ids[17], "non_finite_embedding"),
            (rows.image_ids[200], "non_finite_embedding"),
            (rows.image_ids[30], "duplicate_image_id"),
            (rows.image_ids[100], "duplicate_image_id"),
            (rows.image_ids[41], "duplicate_image"),
        ]
    )
    kept = np.setdiff1d(np.arange(len(codes)), bad)
    assert_equals_scipy(labels, unit[kept], codes[kept])
    found = manifest(labels)
    assert found["counts"]["rows_in"] == len(codes) == found["counts"]["rows_out"] + len(bad)
    assert sum(found["counts"]["rejected"].values()) == len(bad)
    assert found["results"]["labelled"] == len(codes) - len(bad)
    assert found["results"]["images_shared_between_identities"] == 2


def test_too_many_unusable_rows_stop_the_run(do_label, tmp_path):
    unit, codes = clean()
    rows = Rows(unit.copy(), codes)
    rows.embeddings[:20] = 0.0
    with pytest.raises(
        TooManyRejectsError, match=r"20 of 360 rows .*20 zero or non-finite.*max_reject_share=0.05"
    ):
        do_label(rows)
    assert not (tmp_path / "labels0" / MANIFEST).exists()


def test_nothing_but_unusable_rows_is_an_error(do_label):
    unit, codes = clean()
    with pytest.raises(InputError, match="no image could be labelled"):
        do_label(Rows(np.zeros_like(unit), codes), max_reject_share=1.0)


def test_file_damaged_in_the_embeddings_is_named(tmp_path, capsys):
    """The keys can be read on the driver; the damage is met by a worker."""
    embeddings = write_embeddings(tmp_path / "embeddings", Rows(*clean()), num_files=3)
    file = Path(embeddings, "part-000001.parquet")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    file.write_bytes(bytes(content))
    argv = [f"embeddings={embeddings}", f"output={tmp_path}/labels", "resources.workers=1"]
    assert main(LabelConfig, label.run, argv) == 1
    message = capsys.readouterr().err
    assert str(file) in message
    assert "Traceback" not in message


def test_scales(do_label, degraded_labels):
    rows = Rows(*degraded())
    by_method = {scaling: do_label(rows, scaling=scaling) for scaling in ("quantile", "none")}
    by_method["min_max"] = degraded_labels
    distance = column(by_method["none"], "distance")
    for labels in by_method.values():
        np.testing.assert_array_equal(column(labels, "distance"), distance)
    np.testing.assert_array_equal(column(by_method["none"], "pseudo_label"), distance)
    wanted = 100 * (distance - distance.min()) / np.ptp(distance)
    np.testing.assert_allclose(column(by_method["min_max"], "pseudo_label"), wanted, atol=1e-3)
    rank = distance.argsort().argsort() / (len(distance) - 1) * 100
    np.testing.assert_allclose(column(by_method["quantile"], "pseudo_label"), rank, atol=1.0)
    knots = manifest(by_method["min_max"])["results"]["scale"]["knots"]
    np.testing.assert_allclose(knots, [distance.min(), distance.max()], atol=1e-6)


def test_more_workers_than_the_cluster_holds(do_label, tmp_path):
    with pytest.raises(ResourceError, match=r"9 worker\(s\) need 9 CPU, the cluster has 4"):
        do_label(Rows(*clean()), resources={"workers": 9})
    assert read_records(Location(str(tmp_path / "labels0" / "_work/raw"))) == {}


@pytest.mark.parametrize("rows_per_shard", [50, 1000])
def test_embeddings_of_two_sizes_are_refused(tmp_path, monkeypatch, rows_per_shard):
    """Whether they meet in one shard or in two."""
    monkeypatch.setattr(label_plan, "ROWS_PER_SHARD", rows_per_shard)
    rows = Rows(*clean())
    embeddings = write_embeddings(tmp_path / "embeddings", rows, num_files=2)
    short = Rows(rows.embeddings[180:, :32], rows.codes[180:], rows.image_ids[180:])
    (Location(embeddings) / "part-000001.parquet").write_bytes(parquet_bytes(short.table()))
    tree = {"embeddings": embeddings, "output": str(tmp_path / "labels")}
    with pytest.raises(InputError, match=r"part-000001.parquet: embeddings of 32 numbers"):
        label.run(load_tree(LabelConfig, tree))


def test_file_with_a_null_embedding_is_named(tmp_path):
    rows = Rows(*clean())
    embeddings = write_embeddings(tmp_path / "embeddings", rows, num_files=2)
    table = rows.table(slice(180, 360))
    place = table.schema.get_field_index("embedding")
    some = table["embedding"].to_pylist()
    some[7] = None
    kind = table.schema.field(place)
    table = table.set_column(place, kind, pa.array(some, kind.type))
    (Location(embeddings) / "part-000001.parquet").write_bytes(parquet_bytes(table))
    tree = {"embeddings": embeddings, "output": str(tmp_path / "labels")}
    with pytest.raises(InputError, match=r"part-000001.parquet: embedding: expected no nulls"):
        label.run(load_tree(LabelConfig, tree))


def faces_of_people(archive, count):
    """Return the images of the first people of an archive, and the code of each one's person."""
    images, codes, people = [], [], {}
    with tarfile.open(archive) as members:
        for member in members:
            if not member.name.endswith(".jpg"):
                continue
            person = member.name.removeprefix("./").split("/")[0]
            if len(people) == count and person not in people:
                break
            codes.append(people.setdefault(person, len(people)))
            with Image.open(members.extractfile(member)) as image:
                images.append(np.asarray(image.convert("RGB")))
    return np.stack(images), np.array(codes)


def test_real_faces_equal_scipy(do_label, shared_data):
    """Twenty people of CFP, frontal and profile, by a recogniser of the public."""
    pytest.importorskip("onnxruntime")
    images, codes = faces_of_people(shared_data / "cfp112.tar", 20)
    assert len(images) == 280
    preprocessing = Preprocessing(
        scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    weights = shared_data / "recognizers" / "mobilefacenet_a.onnx"
    network = OnnxRecogniser(weights, preprocessing)
    unit, _ = normalise(network.embed(images))
    assert_equals_scipy(do_label(Rows(unit, codes)), unit, codes)
