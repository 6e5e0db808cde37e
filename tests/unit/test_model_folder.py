import json

import numpy as np
import pytest
import torch

from sdd_ray.core.calibration import QuantileMap
from sdd_ray.core.models import Architecture, QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import InputError, OutputError, WeightsError
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, load_model, save_model
from sdd_ray.store.weights import digest

ARCHITECTURE = QualityArchitecture(
    backbone=Architecture(width=0.25, input_size=(32, 32)), head="average", dropout=0.2
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return QualityModel(
        network=build_quality(ARCHITECTURE),
        architecture=ARCHITECTURE,
        preprocessing=Preprocessing(height=32, width=32, channel_order="bgr"),
        calibration=QuantileMap.fit(np.arange(50.0)),
        record={"epochs": 3, "loss": [1.5, 0.5]},
    )


@pytest.fixture
def folder(tmp_path, model):
    location = Location(str(tmp_path / "model"))
    save_model(location, model)
    return location


def test_round_trip(folder, model, tmp_path):
    loaded = load_model(folder)
    assert not loaded.network.training
    assert loaded.architecture == model.architecture
    assert loaded.preprocessing == model.preprocessing
    assert loaded.calibration == model.calibration
    assert loaded.record == model.record
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), model.network.eval()(images))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_description_names_the_digest_of_the_weights(folder, tmp_path, model):
    description = json.loads((tmp_path / "model/model.json").read_text())
    assert description["weights_sha256"] == digest(tmp_path / "model/model.safetensors")
    assert save_model(Location(str(tmp_path / "again")), model) == description["weights_sha256"]


def test_an_existing_model_is_not_overwritten(folder, model):
    with pytest.raises(OutputError, match="already holds a model"):
        save_model(folder, model)


def test_a_folder_without_description_is_unfinished(folder, tmp_path, model):
    (tmp_path / "model/model.json").unlink()
    with pytest.raises(InputError, match="training has not finished"):
        load_model(folder)
    save_model(folder, model)  # What an interrupted run left does not stop the next one.
    load_model(folder)


def test_a_crash_while_writing_leaves_no_description(tmp_path, model, monkeypatch):
    written = []

    def stop(self, content):
        written.append(self.uri)
        raise OutputError("disk full")

    monkeypatch.setattr(Location, "write_bytes", stop)
    with pytest.raises(OutputError, match="disk full"):
        save_model(Location(str(tmp_path / "model")), model)
    assert [uri.rsplit("/", 1)[1] for uri in written] == ["model.safetensors"]


def test_changed_weights_are_noticed(folder, tmp_path):
    path = tmp_path / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"expected SHA-256 .* damaged or was replaced"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": 2}, InputError, "expected format 1, got 2"),
        ({"architecture": {"backbone": {"name": "vit"}}}, InputError, "mobilefacenet"),
        ({"architecture": {"head": "average"}}, WeightsError, "do not fit QualityNetwork"),
        ({"preprocessing": {"width": -1}}, InputError, "expected positive"),
        ({"calibration": {}}, InputError, "expected the keys quality and raw"),
        ({"calibration": None}, InputError, r"model\.json"),
    ],
)
def test_a_changed_description_is_noticed(folder, tmp_path, change, error, message):
    path = tmp_path / "model/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_description_is_named(folder, tmp_path, text):
    (tmp_path / "model/model.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(folder)


def test_another_network_than_described_is_not_saved(tmp_path, model):
    other = QualityModel(
        build_quality(QualityArchitecture(backbone=Architecture(width=0.5, input_size=(32, 32)))),
        model.architecture,
        model.preprocessing,
        model.calibration,
    )
    with pytest.raises(WeightsError, match=r"the network to save: .* do not fit"):
        save_model(Location(str(tmp_path / "model")), other)
    assert not (tmp_path / "model").exists()
