import hashlib
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from sdd_ray.core.models import Architecture, build_backbone
from sdd_ray.errors import InputError, WeightsError
from sdd_ray.store.weights import digest, fit_weights, load_weights, save_weights


def _network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


class _Attack:
    """Writes a file when unpickled without restriction."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def _same(left, right):
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_safetensors_round_trip(tmp_path):
    weights = _network().state_dict()
    save_weights(tmp_path / "w.safetensors", weights)
    assert _same(load_weights(tmp_path / "w.safetensors"), weights)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_equal_weights_give_equal_files_whatever_their_memory_order(tmp_path):
    weights = {"b": torch.randn(2, 3, 4, 5), "a": torch.ones(1)}
    shuffled = {"a": weights["a"], "b": weights["b"].to(memory_format=torch.channels_last)}
    save_weights(tmp_path / "1.safetensors", weights)
    save_weights(tmp_path / "2.safetensors", shuffled)
    assert digest(tmp_path / "1.safetensors") == digest(tmp_path / "2.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize(
    "nest",
    [
        None,
        "state_dict",
        "net_state_dict",
        "model_state_dict",
        "state_dict_backbone",
        "backbone",
        "model",
    ],
)
def test_checkpoints_are_opened(tmp_path, suffix, nest):
    weights = _network().state_dict()
    content = weights if nest is None else {"epoch": 3, nest: weights}
    torch.save(content, tmp_path / f"w{suffix}")
    assert _same(load_weights(tmp_path / f"w{suffix}"), weights)


def test_nests_within_nests_are_opened(tmp_path):
    weights = _network().state_dict()
    content = {"model": {"state_dict": weights}}
    torch.save(content, tmp_path / "w.pt")
    assert _same(load_weights(tmp_path / "w.pt"), weights)
    for _ in range(3):
        content = {"model": content}
    torch.save(content, tmp_path / "deep.pt")
    with pytest.raises(WeightsError, match=r"deep\.pt: .* got 1 other values \(state_dict\)"):
        load_weights(tmp_path / "deep.pt")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path):
    content = {"epoch": 3}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: .* got 2 other values \(epoch, state_dict\)"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("save", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c, 2))])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, save, nested, suffix):
    victim = tmp_path / "executed"
    attack = _Attack(victim)
    path = tmp_path / f"w{suffix}"
    save({"state_dict": attack} if nested else attack, path)
    with pytest.raises(WeightsError, match="refused; it holds more than tensors"):
        load_weights(path)
    assert not victim.exists()
    # The attack is real: an unrestricted reader runs it.
    if save is torch.save:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())  # noqa: S301
    assert victim.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 7, 40, 300, -1])
def test_damaged_files_are_refused(tmp_path, name, kept):
    path = tmp_path / name
    if name == "w.pt":
        torch.save(_network().state_dict(), path)
    else:
        save_weights(path, _network().state_dict())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=name):
        load_weights(path)


def test_a_whole_module_is_refused_with_advice(tmp_path):
    torch.save(_network(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="save the state_dict alone, best as"):
        load_weights(tmp_path / "w.pt")


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path):
    path, bomb = tmp_path / "w.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(5_000_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    assert bomb.stat().st_size < 50_000
    with pytest.raises(WeightsError, match=r"bomb\.pt: refused; its .* would unpack to 20,0"):
        load_weights(bomb)
    assert load_weights(path)["a"].shape == (5_000_000,)


def test_an_old_pickle_that_announces_more_than_memory_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    size = b"M\xe8\x03"  # pickled 1000
    assert content.count(size) >= 1
    path.write_bytes(content.replace(size, b"\x8a\x06" + (1 << 45).to_bytes(6, "little")))
    with pytest.raises(WeightsError, match=r"w\.pt: "):
        load_weights(path)


@pytest.mark.parametrize(
    "header", [2**63, 2**63 - 1, 2**64 - 1, 10**9], ids=["2^63", "2^63-1", "2^64-1", "10^9"]
)
def test_safetensors_that_announce_a_huge_header_are_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + b'{"a":{}}')
    with pytest.raises(WeightsError, match=r"w\.safetensors: damaged safetensors file"):
        load_weights(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]},
    ],
)
def test_safetensors_whose_header_lies_are_refused(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match=r"w\.safetensors: damaged safetensors file"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [False, True])
def test_changed_bytes_never_raise_another_kind_of_error(tmp_path, is_zip):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=is_zip)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        changed = content.copy()
        changed[rng.integers(0, content.size, 4)] = rng.integers(0, 256, 4)
        path.write_bytes(changed.tobytes())
        try:
            load_weights(path)
        except WeightsError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "expected tensors by name, got list"),
        ({}, "got an empty dict"),
        ({"epoch": 3, "lr": 0.1, "w": torch.ones(1)}, r"2 other values \(epoch, lr\)"),
    ],
)
def test_something_else_than_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "w.pt")


def test_unknown_suffix_names_the_known_ones(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"\.safetensors, \.pt, \.pth, \.ckpt"):
        load_weights(tmp_path / "w.bin")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"w\.pt: no such weight file"):
        load_weights(tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt"):
        digest(tmp_path / "w.pt")


def test_misfits_are_counted_and_named_and_leave_the_network_alone():
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    del weights["0.bias"]
    weights["0.weight"] = torch.ones(2, 4)
    weights |= {f"extra{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(WeightsError) as caught:
        fit_weights(network, weights, "w.pt")
    assert str(caught.value) == (
        "w.pt: the weights do not fit Sequential of 7 tensors: 1 missing (0.bias);"
        " 5 not known to the architecture (extra0, extra1, extra2, ...);"
        " 1 of another shape (0.weight (2, 4) instead of (2, 3))"
    )
    assert _same(network.state_dict(), before)


def test_counters_of_batch_normalisation_alone_may_be_missing():
    weights = {name: value + 1 for name, value in _network().state_dict().items()}
    del weights["1.num_batches_tracked"]
    network = _network()
    fit_weights(network, weights, "w.pt")
    assert torch.equal(network[1].running_mean, weights["1.running_mean"])
    assert int(network[1].num_batches_tracked) == 0
    del weights["1.running_mean"]
    with pytest.raises(WeightsError, match=r"1 missing \(1\.running_mean\)"):
        fit_weights(network, weights, "w.pt")


def test_values_that_are_not_finite_are_refused():
    weights = dict(_network().state_dict())
    weights["0.weight"] = torch.full((2, 3), torch.nan)
    with pytest.raises(WeightsError, match=r"not finite in 0\.weight"):
        fit_weights(_network(), weights, "w.pt")


def test_half_precision_weights_are_widened():
    weights = {
        n: v.half() if v.is_floating_point() else v for n, v in _network().state_dict().items()
    }
    network = _network()
    fit_weights(network, weights, "w.pt")
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, weights["0.weight"].float())


def test_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert digest(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_real_checkpoints_open(shared_data):
    folder = shared_data / "recognizers"
    fitting = load_weights(folder / "mobilefacenet_a.pt")
    network = build_backbone(Architecture())
    fit_weights(network, fitting, "mobilefacenet_a.pt")
    assert torch.equal(network.conv3.bias, fitting["conv3.bias"])
    stranger = load_weights(folder / "mobilefacenet_b.ckpt")
    assert len(stranger) == 333
    with pytest.raises(WeightsError, match=r"25\d missing .*; 333 not known"):
        fit_weights(network, stranger, "mobilefacenet_b.ckpt")
