"""The plan command: outputs that were measured, in one table."""

import json

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings

from sdd_ray import plan
from sdd_ray.config import main
from sdd_ray.settings import LabelConfig, PlanConfig, TrainConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, PartRecord, write_part


def embedded(folder, images, seconds, workers=2):
    """A dataset of embed whose manifest says how long the network took."""
    generator = np.random.default_rng(0)
    place = write_embeddings(
        folder, Rows(generator.standard_normal((images, 8)).astype(np.float32), np.arange(images))
    )
    return _with(place, seconds=seconds + 5.0, network={"workers": workers, "seconds": seconds})


def _with(place, seconds, network):
    file = Location(place) / "manifest.json"
    tree = json.loads(file.read_bytes())
    tree |= {"seconds": seconds, "results": {**tree["results"], "network": network}}
    file.write_bytes(json.dumps(tree).encode())
    return place


@pytest.fixture
def labelled(tmp_path):
    place = Location(str(tmp_path / "labels"))
    run = OutputRun(place, "label", LabelConfig(embeddings="e", output=place.uri))
    run.complete([write_part(place, "part-000000", pa.table({"image_id": ["a", "b"]}))])
    return place.uri


@pytest.fixture
def do_plan(capsys):
    def run(*words):
        status = main(PlanConfig, plan.run, list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_table(do_plan, tmp_path):
    small = embedded(tmp_path / "a", 100, 10.0)
    large = embedded(tmp_path / "b", 500, 50.0)
    status, out, _ = do_plan(
        "images=3600000",
        "workers=10",
        "workers_per_node=2",
        "gpus_per_worker=1",
        "price_per_node_hour=2.5",
        f"measured=[{{path: {small}}}, {{path: {large}}}]",
    )
    assert status == 0
    # 50 and 250 images of a worker in 15 and 55 s: 5 images/s, 72,000 s for ten workers.
    line = next(line for line in out.splitlines() if line.startswith("embed"))
    assert line.split()[1:8] == ["20", "h", "00", "min", "50", "200.0", "200.0"]
    assert line.endswith("workers")
    assert out.startswith("3,600,000 images, 10 workers on 5 machines")
    assert "200.0 GPU hours, 250.0" in out
    assert "*" not in out
    # Reading at 1 MB/s on each of five machines: 28.8 GB take 1.6 hours, less than the work.
    assert "reading" not in do_plan("images=3600000", f"measured=[{{path: {small}}}]")[1]
    slow = do_plan("images=3600000", "node_mb_per_s=0.001", f"measured=[{{path: {large}}}]")[1]
    assert "reading *" in slow
    assert "from runs of one size" in slow


def test_workers_that_nobody_knows(do_plan, labelled):
    status, _, err = do_plan("images=5", f"measured=[{{path: {labelled}}}]")
    assert status == 1
    assert "does not say how many workers it had; give it as measured" in err
    status, out, _ = do_plan("images=5", f"measured=[{{path: {labelled}, workers: 3}}]")
    assert status == 0
    assert out.splitlines()[3].startswith("label")


def test_training_counts_epochs(do_plan, tmp_path):
    place = Location(str(tmp_path / "model"))
    run = OutputRun(place, "train", TrainConfig(labels="l", output=place.uri))
    (place / "model.safetensors").write_bytes(b"weights")
    record = PartRecord("model", 100, 100, "d", 300, suffix=".safetensors")
    run.complete([record], {"epochs": 4, "train_images": 100})
    words = [f"measured=[{{path: {place.uri}, workers: 1}}]", "images=1000000"]
    read = {
        epochs: do_plan(*words, *more)[1].splitlines()[3]
        for epochs, more in {4: [], 8: ["epochs=8"]}.items()
    }
    assert "    32.0  " in read[4]  # 4 x 10^6 images of 8,000 bytes
    assert "    64.0  " in read[8]


def test_outputs_of_other_commands(do_plan, tmp_path):
    status, _, err = do_plan("images=5", f"measured=[{{path: {tmp_path}}}]")
    assert status == 1
    assert "expected a dataset written by embed or label or train or score or measure" in err


def test_a_rate_stands_for_a_stage_that_nobody_measured(do_plan, tmp_path):
    rate = "{stage: embed, images_per_s: 2000, start_s: 60, bytes_per_image: 1100}"
    words = ["images=57600000", "workers=8", "gpus_per_worker=1", f"rates=[{rate}]"]
    status, out, _ = do_plan(*words)
    assert status == 0
    # 57.6 million images at 16,000 a second: an hour, and a minute of starts.
    [line] = [line for line in out.splitlines() if line.startswith("embed")]
    expected = "embed 1 h 01 min 16,000 8.1 8.1 460.8 63.4 ? ? workers +"
    assert line.split() == expected.split()
    assert out.splitlines()[-1] == "+ by the rate that was given, which nobody measured here"
    status, _, err = do_plan(*words, f"measured=[{{path: {embedded(tmp_path / 'a', 100, 10.0)}}}]")
    assert status == 2
    assert "rates: embed is measured; leave out one or the other" in err


def test_nothing_to_plan_from(do_plan):
    status, _, err = do_plan("images=5")
    assert status == 2
    assert "expected measured runs or rates, got none of either" in err
    rates = "rates=[{stage: train, images_per_s: 1}]"
    assert "of train needs epochs" in do_plan("images=5", rates)[2]
    assert do_plan("images=5", rates, "epochs=2")[0] == 0
    twice = "[{stage: embed, images_per_s: 1}, {stage: embed, images_per_s: 2}]"
    assert "expected each stage once" in do_plan("images=5", f"rates={twice}")[2]
