"""embed and score through the engine on a GPU, beside the CPU's. Run with `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from drawn_faces import face, write_faces
from quality_models import write_model

import sdd_ray
from sdd_ray import embed, score
from sdd_ray.config import load_tree
from sdd_ray.core.calibration import QuantileMap
from sdd_ray.core.fitting import predict
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.engine.scoring import ScoreStage
from sdd_ray.settings import EmbedConfig, ScoreConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ray_session")]

DEVICE = "cuda"
ON_CPU = {"workers": 1}
ON_GPU = {"workers": 1, "gpus_per_worker": 1}  # decoders before it, and writers behind
SPLITS = [
    {"images_per_shard": 7, "batch_size": 4},
    {"images_per_shard": 48, "batch_size": 5},
    {"images_per_shard": 30, "batch_size": None},
]


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.fail("-m gpu was asked for, but torch finds no CUDA device")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Folder of 48 drawn faces and two files that are none."""
    root = tmp_path_factory.mktemp("faces")
    write_faces(root, identities=8, images=6)
    (root / "000" / "empty.png").touch()
    (root / "007" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return root


def run(stage, config, root, output, **keys):
    """Run a stage on the folder; return the dataset."""
    source = {"kind": "folder", "path": str(root)}
    tree = {"source": source, "output": str(output), "max_reject_share": 0.1, **keys}
    name = stage.__name__.rpartition(".")[2]
    stage.run(load_tree(config, tree))
    return open_dataset(str(output), [name])


@pytest.fixture(scope="module")
def embedded(ray_session, faces, tmp_path_factory):
    output = tmp_path_factory.mktemp("embedded") / "cpu"
    return run(embed, EmbedConfig, faces, output, resources=ON_CPU)


@pytest.mark.parametrize("split", SPLITS)
def test_embeddings_are_those_of_the_cpu(embedded, faces, tmp_path, split):
    found = run(embed, EmbedConfig, faces, tmp_path / "gpu", resources=ON_GPU, **split)
    keys = ["image_id", "identity", "content"]
    assert found.read(keys).equals(embedded.read(keys))
    assert found.manifest["counts"] == embedded.manifest["counts"]
    assert found.manifest["counts"]["rejected"] == {"damaged": 1, "empty": 1}
    gpu, cpu = (
        np.array(dataset.read(["embedding"])["embedding"].to_pylist())
        for dataset in (found, embedded)
    )
    np.testing.assert_allclose(np.linalg.norm(gpu, axis=1), 1, atol=1e-6)
    assert (gpu * cpu).sum(1).min() > 0.9999
    results = found.manifest["results"]
    assert results["network"]["workers"] == 1
    assert results["batch_size"] in ((8, 16, 32) if split["batch_size"] is None else (4, 5))


def pixels(number):
    return np.stack([np.asarray(face(n % 8, n // 8)) for n in range(number)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a network on the trained trunk, whose raw qualities spread over 30 units.

    The last weights are born so small that the rounding of a GPU would be more than the spread.
    """
    torch.manual_seed(0)
    trunk = load_backbone(RecogniserSpec())
    architecture, preprocessing = QualityArchitecture(trunk.architecture), trunk.preprocessing
    network = build_quality(architecture)
    network.start_from(trunk.network)
    inputs = preprocessing.apply_tensor(torch.from_numpy(pixels(48)))
    with torch.no_grad():
        network.head[-1].weight *= 30 / np.ptp(predict(network, inputs))
    calibration = QuantileMap.fit(predict(network, inputs))
    made = QualityModel(network, architecture, preprocessing, calibration)
    return write_model(tmp_path_factory.mktemp("model"), made)


@pytest.fixture(scope="module")
def scored(ray_session, faces, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored") / "cpu"
    return run(score, ScoreConfig, faces, output, model=model, resources=ON_CPU)


@pytest.mark.parametrize("split", SPLITS)
def test_qualities_are_those_of_the_cpu(scored, faces, model, tmp_path, split):
    output = tmp_path / "gpu"
    found = run(score, ScoreConfig, faces, output, model=model, resources=ON_GPU, **split)
    keys = ["image_id", "reason"]
    assert found.read(keys).equals(scored.read(keys))
    assert found.manifest["counts"] == scored.manifest["counts"]
    raw, quality = (
        [np.array(dataset.read([name])[name].to_pylist(), float) for dataset in (found, scored)]
        for name in ("raw", "quality")
    )
    spread = np.nanmax(raw[1]) - np.nanmin(raw[1])
    assert spread > 20
    np.testing.assert_allclose(raw[0], raw[1], atol=0.01 * spread)
    np.testing.assert_allclose(quality[0], quality[1], atol=4)
    assert len(set(quality[1])) > 20


def test_batches_under_way_at_the_same_time_keep_their_qualities(model):
    network = ScoreStage(Location(model), DEVICE).load(1)
    images = pixels(24)
    batches = [images[first : first + 5] for first in range(0, 24, 5)] * 8
    alone = [next(network([batch])) for batch in batches]
    raw = np.concatenate(alone)[:, 0]
    for rows, same in zip(network(batches), alone, strict=True):
        assert rows.shape == (len(same), 2)
        np.testing.assert_allclose(rows[:, 0], same[:, 0], atol=0.01 * np.ptp(raw))
        np.testing.assert_allclose(rows[:, 1], same[:, 1], atol=3)
    assert next(network([images[:0]])).shape == (0, 2)


def test_the_python_api_scores_as_on_the_cpu(model):
    images = [*pixels(40), b"broken"]
    gpu = sdd_ray.load_model(model, device=DEVICE, batch_size=7).score(images)
    cpu = sdd_ray.load_model(model).score(images)
    assert gpu.reasons == cpu.reasons
    spread = np.nanmax(cpu.raw) - np.nanmin(cpu.raw)
    np.testing.assert_allclose(gpu.raw, cpu.raw, atol=0.01 * spread)
