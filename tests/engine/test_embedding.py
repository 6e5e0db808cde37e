"""Embeddings through the real engine: the right ones, however the work is split and disturbed."""

import hashlib
import os
import signal

import numpy as np
import pytest

from sdd_ray import embed
from sdd_ray.config import load_tree
from sdd_ray.core.similarity import normalise
from sdd_ray.engine import embedding
from sdd_ray.engine.image_worker import Shard
from sdd_ray.errors import ResourceError, WeightsError
from sdd_ray.formats import drawn as drawn_source
from sdd_ray.formats import source
from sdd_ray.formats.items import Listing
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import open_source
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.recogniser import RecogniserSpec, load_recogniser
from sdd_ray.store.run import Reject

pytestmark = pytest.mark.usefixtures("ray_session")

SYNTHETIC = {"kind": "synthetic", "synthetic": {"num_identities": 8, "images_per_identity": 6}}
TREE = {
    "source": SYNTHETIC,
    "images_per_shard": 7,
    "batch_size": 4,
    "resources": {"workers": 1},
}


def do_embed(output, **keys):
    """Embed the drawn faces; return the dataset."""
    embed.run(load_tree(EmbedConfig, {**TREE, "output": str(output), **keys}))
    return open_dataset(str(output), ["embed"])


@pytest.fixture(scope="module")
def by_one_worker(ray_session, tmp_path_factory):
    return do_embed(tmp_path_factory.mktemp("one") / "embeddings")


@pytest.fixture(scope="module")
def drawn():
    """The (image_id, identity) of all faces, and their pixels."""
    source = open_source(load_tree(EmbedConfig, {**TREE, "output": "o"}).source)
    items = list(source.items(Listing()))
    keys = [(item.image_id, item.identity) for item in items]
    return keys, np.stack([read_face(source, item) for item in items])


def matrix(dataset):
    return np.array(dataset.read(["embedding"])["embedding"].to_pylist(), np.float32)


def test_rows_are_the_recognisers_embeddings_of_the_faces(by_one_worker, drawn):
    keys, images = drawn
    table = by_one_worker.read(["image_id", "identity", "norm", "content"])
    assert list(zip(*(table[n].to_pylist() for n in ("image_id", "identity")), strict=True)) == keys
    unit, norms = normalise(load_recogniser(RecogniserSpec()).embed(images))
    np.testing.assert_allclose(matrix(by_one_worker), unit, atol=1e-5)
    np.testing.assert_allclose(table["norm"].to_numpy(), norms, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(matrix(by_one_worker), axis=1), 1.0, atol=1e-6)
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
    assert table["content"].to_pylist() == [int.from_bytes(d, "little") for d in digests]
    counts = by_one_worker.manifest["counts"]
    assert counts == {"rows_in": 48, "rows_out": 48, "rejected": {}}


def test_content_does_not_depend_on_the_number_of_workers(by_one_worker, tmp_path):
    found = do_embed(tmp_path / "three", resources={"workers": 3})
    assert found.digest == by_one_worker.digest


@pytest.mark.slow
def test_decoding_apart_from_the_network_changes_nothing(by_one_worker, tmp_path):
    found = do_embed(tmp_path / "apart", resources={"workers": 1, "decode_workers": 2})
    assert found.digest == by_one_worker.digest
    network = found.manifest["results"]["network"]
    assert network["workers"] == 1
    assert 0 <= network["idle_share"] < 1


@pytest.mark.slow
def test_batch_size_is_found_once_and_kept(tmp_path, monkeypatch):
    found = do_embed(tmp_path / "found", batch_size=None)
    size = found.manifest["results"]["batch_size"]
    assert size == 8  # larger ones than a shard of 7 are not tried


@pytest.mark.slow
def test_half_precision_in_other_batches_is_near(by_one_worker, tmp_path):
    found = do_embed(
        tmp_path / "half",
        storage="float16",
        images_per_shard=20,
        batch_size=32,
    )
    assert len(found.files) == 3
    assert str(found.read(["embedding"]).schema.field("embedding").type.value_type) == "halffloat"
    np.testing.assert_allclose(matrix(found), matrix(by_one_worker), atol=5e-4)


@pytest.mark.parametrize("decode_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_worker_changes_nothing(by_one_worker, monkeypatch, tmp_path, decode_workers):
    marker = tmp_path / "killed"

    class Killed(embedding.EmbedStage):  # Within a function, so that it travels by value.
        def load(self, threads):
            network = super().load(threads)

            def embed_or_die(batches):
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return network(batches)

            return embed_or_die

    monkeypatch.setattr(embedding, "EmbedStage", Killed)
    resources = {"workers": 1, "decode_workers": decode_workers}
    found = do_embed(tmp_path / "embeddings", resources=resources)
    assert marker.exists()
    assert found.digest == by_one_worker.digest


@pytest.mark.slow
def test_killed_decoder_changes_nothing(by_one_worker, monkeypatch, tmp_path):
    marker = tmp_path / "killed"

    class Killing(drawn_source.SyntheticSource):  # Within a function, so that it travels by value.
        def fetch(self, items):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().fetch(items)

    monkeypatch.setattr(source, "SyntheticSource", Killing)
    found = do_embed(tmp_path / "embeddings", resources={"workers": 1, "decode_workers": 1})
    assert marker.exists()
    assert found.digest == by_one_worker.digest


def test_network_that_does_not_load_on_a_worker_ends_the_run_with_its_own_error(
    monkeypatch, tmp_path
):
    class Unloadable(embedding.EmbedStage):  # Within a function, so that it travels by value.
        def load(self, threads):
            raise WeightsError("the weights are damaged on this node")

    monkeypatch.setattr(embedding, "EmbedStage", Unloadable)
    with pytest.raises(WeightsError, match="the weights are damaged on this node"):
        do_embed(tmp_path / "embeddings")


def test_unusable_outputs_of_the_network_are_set_aside():
    """With the images that could not be read; what is left keeps its own keys and pixels."""
    images = np.stack([np.full((112, 112, 3), n, np.uint8) for n in range(4)])
    unread = Reject("z", "empty", "no bytes")
    content = np.arange(4, dtype=np.uint64)
    shard = Shard(["a", "b", "c", "d"], ["p", "p", None, "q"], images, content, [unread], 0)
    outputs = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [0.0, 2.0]], np.float32)
    table, rejects = embedding.EmbedStage(RecogniserSpec(), "float32", "cpu").rows(shard, outputs)
    assert [(r.image_id, r.reason) for r in rejects] == [
        ("z", "empty"), ("b", "zero_embedding"), ("c", "non_finite_embedding"),
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [(r["image_id"], r["identity"], r["norm"]) for r in rows] == [
        ("a", "p", 5.0), ("d", "q", 2.0),
    ]  # fmt: skip
    np.testing.assert_allclose([r["embedding"] for r in rows], [[0.6, 0.8], [0, 1]], rtol=1e-6)
    assert [r["content"] for r in rows] == [0, 3]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"workers": 9}, r"9 worker\(s\) need 9 CPU, the cluster has 4 CPU"),
        ({"cpus_per_worker": 64}, r"1 worker\(s\) need 64 CPU, the cluster has 4 CPU"),
        ({"gpus_per_worker": 1}, r"1 worker\(s\) need 1 CPU and 1 GPU, .* 2.75 CPU and 0 GPU"),
    ],
)
def test_missing_resources_end_the_run_before_any_work(tmp_path, resources, message):
    with pytest.raises(ResourceError, match=message):
        do_embed(tmp_path / "embeddings", resources=resources)
    assert Location(str(tmp_path / "embeddings")).names() == ["_incomplete.json"]
