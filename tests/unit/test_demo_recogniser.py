"""The packaged recogniser: its loss, its figures, and the files that are shipped."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

import sdd_ray.synthetic
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ConfigError
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone
from sdd_ray.store.weights import load_weights
from sdd_ray.synthetic import train_recogniser, verification
from sdd_ray.synthetic.samples import (
    DEMO_IDENTITY_LIMIT,
    RECOGNISER_HELD_OUT_IDENTITY,
    RECOGNISER_TRAINING_IDENTITY,
    SyntheticSet,
    draw_sample,
    keys,
)

FOLDER = Path(sdd_ray.synthetic.__file__).parent
WEIGHTS = FOLDER / train_recogniser.WEIGHTS_NAME
DESCRIPTION = json.loads((FOLDER / train_recogniser.DESCRIPTION_NAME).read_text())


@pytest.fixture(scope="module")
def network():
    return load_backbone(RecogniserSpec(kind="demo")).network


def test_margin_loss_equals_the_formula():
    random = np.random.default_rng(0)
    embeddings, centres = random.normal(size=(5, 8)), random.normal(size=(4, 8))
    people = np.array([0, 3, 1, 1, 2])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = unit @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    expected = 0.0
    for row, person in enumerate(people):
        own = np.exp(20 * (cosine[row, person] - 0.35))
        others = sum(np.exp(20 * cosine[row, p]) for p in range(4) if p != person)
        expected -= np.log(own / (own + others)) / 5
    tensors = (torch.from_numpy(array) for array in (embeddings, centres, people))
    assert train_recogniser.margin_loss(*tensors, 0.35).item() == pytest.approx(expected)


def test_training_lowers_the_loss_and_ends_in_evaluation(caplog, monkeypatch):
    monkeypatch.setattr(train_recogniser, "_MARGIN", 0.0)  # a growing margin raises the loss
    plan = train_recogniser.TrainingPlan(
        num_identities=4, images_per_identity=4, epochs=12, batch_size=8, seed=0
    )
    with caplog.at_level("INFO", logger=train_recogniser.__name__):
        network = train_recogniser.train(plan)
    losses = [float(line.rsplit(" ", 1)[1]) for line in caplog.messages if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert not network.training


@pytest.mark.parametrize(("images", "epochs"), [(15, 1), (16, 0)])
def test_plan_without_a_step_is_refused(images, epochs):
    with pytest.raises(ConfigError, match="at least one epoch over at least 64 pictures, got"):
        train_recogniser.TrainingPlan(4, images, epochs, batch_size=64, seed=0)


def test_command_writes_what_the_loader_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(train_recogniser, "measure", lambda _: {"figure": 0.5})
    options = ["--identities", "8", "--images-per-identity", "8", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["train", "--output", str(tmp_path / "new"), *options])
    train_recogniser.main()
    description = json.loads((tmp_path / "new" / "recogniser.json").read_text())
    assert set(description) == set(DESCRIPTION)
    assert description["record"]["figures"] == {"figure": 0.5}
    assert description["record"]["training"]["num_identities"] == 8
    written = load_weights(tmp_path / "new" / "recogniser.safetensors")
    assert {name: value.shape for name, value in written.items()} == {
        name: value.shape for name, value in load_weights(WEIGHTS).items()
    }


def test_equal_error_rate_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    mated = random.normal(1.5, 1, 4000).astype(np.float32)
    nonmated = random.normal(0, 1, 6000).astype(np.float32)
    truth = np.repeat([1, 0], [4000, 6000])
    false_match, true_match, _ = roc_curve(truth, np.concatenate([mated, nonmated]))
    expected = false_match[np.argmin(np.abs(false_match - (1 - true_match)))]
    assert verification.equal_error_rate(mated, nonmated) == pytest.approx(expected, abs=1e-3)


def test_comparisons_and_gaps_equal_brute_force():
    random = np.random.default_rng(0)
    unit = random.normal(size=(7, 4)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    people = np.array([0, 0, 0, 1, 1, 2, 2])
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    mated, nonmated = verification.compared(unit, people)
    expected = [unit[i] @ unit[j] for i, j in pairs if people[i] == people[j]]
    np.testing.assert_allclose(mated, expected, atol=1e-6)
    assert len(mated) + len(nonmated) == len(pairs)
    gaps = verification.similarity_gaps(unit, people)
    for i in range(7):
        own = [unit[i] @ unit[j] for j in range(7) if j != i and people[i] == people[j]]
        others = [unit[i] @ unit[j] for j in range(7) if people[i] != people[j]]
        assert gaps[i] == pytest.approx(np.mean(own) - np.mean(others), abs=1e-6)


def test_training_held_out_and_demo_people_are_apart():
    last = RECOGNISER_TRAINING_IDENTITY + DESCRIPTION["record"]["training"]["num_identities"] - 1
    assert DEMO_IDENTITY_LIMIT <= RECOGNISER_TRAINING_IDENTITY
    assert last < RECOGNISER_HELD_OUT_IDENTITY
    for spec in (verification.CLEAN_SET, verification.DAMAGED_SET):
        assert spec.first_identity >= RECOGNISER_HELD_OUT_IDENTITY


def test_shipped_files_belong_together():
    content = WEIGHTS.read_bytes()
    assert len(content) <= 3_000_000
    assert hashlib.sha256(content).hexdigest() == DESCRIPTION["weights_sha256"]
    described = Preprocessing.from_dict(DESCRIPTION["preprocessing"])
    assert described == train_recogniser.PREPROCESSING
    assert DESCRIPTION["architecture"] == train_recogniser.ARCHITECTURE.to_dict()


def test_model_card_states_the_measured_figures():
    card = (FOLDER / "recogniser.md").read_text()
    for name, value in DESCRIPTION["record"]["figures"].items():
        assert f"| `{name}` | {value} |" in card
    assert DESCRIPTION["weights_sha256"] in card


def test_recogniser_knows_strangers_and_damage_hurts_it(network, monkeypatch):
    spec = SyntheticSet(seed=7, num_identities=20, images_per_identity=5, degraded_share=0.0)
    clean = _unit_embeddings(network, spec)
    people = np.repeat(np.arange(20), 5)
    mated, nonmated = verification.compared(clean, people)
    assert verification.equal_error_rate(mated, nonmated) < 0.02
    ruined = _unit_embeddings(network, SyntheticSet(7, 20, 5, degraded_share=1.0))
    gap_of_clean = verification.similarity_gaps(clean, people).mean()
    assert verification.similarity_gaps(ruined, people).mean() < 0.65 * gap_of_clean


def _unit_embeddings(network, spec):
    pixels = np.stack([draw_sample(spec, *key).image for key in keys(spec)])
    with torch.inference_mode():
        embeddings = network(torch.from_numpy(Preprocessing().apply(pixels)))
    return torch.nn.functional.normalize(embeddings).numpy()
