"""Programs of torch.export and TorchScript: the same embeddings, and no code without trust."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ConfigError, InputError, WeightsError
from sdd_ray.store.recogniser import RecogniserSpec, load_backbone, load_recogniser
from sdd_ray.store.weights import digest, load_weights, program_format

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

FORMATS = ("export", "script")


def save(network, path, kind, batch="N", size=(112, 112)):
    """Save a network as a program, for any batch size or for one."""
    example = torch.zeros(3 if batch == "N" else batch, 3, *size)
    if kind == "script":
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)
    else:
        sizes = ({0: torch.export.Dim("batch")},) if batch == "N" else None
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=sizes), path)


def trusted(path, **options):
    spec = {"trust": True, **options}
    return load_recogniser(RecogniserSpec("program", str(path), **spec))


@pytest.fixture(scope="module")
def network():
    return load_backbone(RecogniserSpec()).network


@pytest.fixture(scope="module")
def programs(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    for kind in FORMATS:
        save(network, folder / f"{kind}.pt2", kind)
    return {kind: folder / f"{kind}.pt2" for kind in FORMATS}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


def cosines(left, right):
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(1) / norms


@pytest.mark.parametrize("kind", FORMATS)
def test_program_embeds_like_the_network_it_was_made_from(programs, network, images, kind):
    recogniser = trusted(programs[kind])
    assert recogniser.embedding_size == 128
    with torch.inference_mode():
        expected = network(torch.from_numpy(Preprocessing().apply(images))).numpy()
    for size in (7, 3, 1):
        batches = [images[start : start + size] for start in range(0, 7, size)]
        embeddings = np.concatenate(list(recogniser.embed_many(batches)))
        np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)
    assert recogniser.embed(images[:0]).shape == (0, 128)
    flipped = trusted(programs[kind], flip=True).embed(images)
    mean = (expected + recogniser.embed(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(flipped, mean, rtol=1e-3, atol=1e-4)
    half = trusted(programs[kind], precision="bfloat16").embed(images)
    assert not np.array_equal(half, embeddings)
    assert cosines(half, expected).min() > 0.999


@pytest.mark.parametrize(("kind", "name"), [("export", "torch.export"), ("script", "TorchScript")])
def test_description_says_what_decides_the_embeddings(programs, kind, name):
    description = json.loads(json.dumps(trusted(programs[kind]).describe()))
    assert description == {
        "kind": "program",
        "weights_sha256": digest(programs[kind]),
        "format": name,
        "preprocessing": Preprocessing().to_dict(),
        "precision": "float32",
        "flip": False,
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_program_must_be_trusted(programs, kind):
    with pytest.raises(ConfigError, match=r"is code .* set recogniser\.trust=true"):
        trusted(programs[kind], trust=False)
    with pytest.raises(ConfigError, match=r"recogniser\.kind=program cannot be trained further"):
        load_backbone(RecogniserSpec("program", str(programs[kind]), trust=True))


def test_suffix_does_not_matter_and_the_right_kind_is_named(programs, tmp_path):
    for kind, path in programs.items():
        other = tmp_path / f"{kind}.pt"
        other.write_bytes(path.read_bytes())
        assert trusted(other).embedding_size == 128
        with pytest.raises(WeightsError, match=r"got a program of .*recogniser\.kind=program"):
            load_weights(other)
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"got a file without one; .*recogniser\.kind=torch"):
        trusted(tmp_path / "w.pt")


class _Mark:
    """Makes a folder when it is unpickled without restriction."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_exported_program_with_code_runs_it_only_where_trusted(programs, tmp_path):
    victim = tmp_path / "executed"
    pickled = io.BytesIO()
    torch.save(_Mark(victim), pickled)
    path = tmp_path / "attack.pt2"
    with zipfile.ZipFile(programs["export"]) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            inputs = name.endswith("sample_inputs/model.pt")
            target.writestr(name, pickled.getvalue() if inputs else source.read(name))
    with pytest.raises(ConfigError, match="is code that may do anything"):
        trusted(path, trust=False)
    assert not victim.exists()
    # The attack is real, which is why trust is asked for.
    with pytest.raises(WeightsError, match=r"damaged program of torch\.export"):
        trusted(path)
    assert victim.exists()


def test_script_with_code_runs_it_only_where_trusted(tmp_path):
    victim = tmp_path / "written"
    source = f"""
def forward(self, images):
    torch.save(images, {str(victim)!r})
    return images.flatten(1)[:, :4]
"""
    module = torch.jit.ScriptModule()
    module.define(source)
    path = tmp_path / "attack.ts"
    torch.jit.save(module, path)
    with pytest.raises(ConfigError, match="is code that may do anything"):
        trusted(path, trust=False)
    assert not victim.exists()
    assert trusted(path).embedding_size == 4
    assert victim.exists()


class _Outputs(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


class _Normalised(nn.Module):
    """With batch normalisation, left in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(images).mean((2, 3))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (_Outputs(lambda x: x * 2), {}, r"expected \(2, E\) embeddings .*, got \(2, 3, 112, 112\)"),
        (_Outputs(lambda x: (x.flatten(1), x)), {}, r"expected \(2, E\) embeddings .*, got tuple"),
        (_Outputs(lambda x: x.mean((0, 2, 3))[None]), {}, r"expected .*, got \(1, 3\)"),
        (nn.Flatten(), {"size": (112, 96)}, None),
        (nn.Sequential(nn.Flatten(), nn.Linear(32256, 4)), {"size": (112, 96)}, "does not run on"),
        (_Outputs(lambda x: x.reshape(1, -1)), {"batch": 1}, "expected|does not run on"),
        (_Normalised().train(), {}, "depends on the others in its batch"),
    ],
)
def test_programs_of_other_use_are_refused(tmp_path, kind, network, options, message):
    save(network, tmp_path / "p.pt2", kind, **options)
    if message is None and kind == "script":  # fits any size
        assert trusted(tmp_path / "p.pt2").embedding_size == 3 * 112 * 112
        return
    with pytest.raises(WeightsError, match=message or "does not run on an input of"):
        trusted(tmp_path / "p.pt2")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_damaged_programs_are_refused(programs, tmp_path, kind, keep):
    content = programs[kind].read_bytes()
    kept = int(keep * len(content)) if isinstance(keep, float) else keep
    (tmp_path / "p.pt2").write_bytes(content[:kept])
    with pytest.raises(WeightsError, match=r"p\.pt2: "):
        trusted(tmp_path / "p.pt2")


@pytest.mark.parametrize("kind", FORMATS)
def test_archives_with_damaged_records_are_refused(programs, tmp_path, kind):
    names = {"export": "models/model.json", "script": "data.pkl"}
    with zipfile.ZipFile(programs[kind]) as source, zipfile.ZipFile(tmp_path / "p", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"{" if name.endswith(names[kind]) else source.read(name))
    assert program_format(tmp_path / "p") is not None
    with pytest.raises(WeightsError, match="damaged program of"):
        trusted(tmp_path / "p")


def test_files_without_a_program_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pt2"):
        trusted(tmp_path / "nowhere.pt2")
    for content in (b"", b"text", pickle.dumps(_Mark(tmp_path / "executed"))):
        (tmp_path / "p.pt2").write_bytes(content)
        with pytest.raises(WeightsError, match="expected a program saved by"):
            trusted(tmp_path / "p.pt2")
    assert not (tmp_path / "executed").exists()
