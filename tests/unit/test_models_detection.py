"""A checkpoint's names and shapes tell its architecture, or what keeps them from fitting one."""

import json
import random
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdd_ray.core.models import (
    CLASSIFICATION_HEADS,
    Architecture,
    architecture_names,
    build_backbone,
    detect,
    without_prefix,
)
from sdd_ray.store.recogniser import DEMO_WEIGHTS
from sdd_ray.store.weights import load_weights

WIDE_INPUT = (112, 96)


@cache
def _shapes(architecture):
    with torch.device("meta"):
        state = build_backbone(architecture).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def shapes_of(architecture, prefix=""):
    return {f"{prefix}{name}": shape for name, shape in _shapes(architecture).items()}


IRESNET18 = Architecture("iresnet18", 512)


@pytest.mark.parametrize("name", architecture_names())
def test_every_architecture_is_detected(name):
    prefix = "features.module." if name.endswith("_magface") else ""
    architecture = Architecture(name, embedding_size=48, input_size=(64, 64))
    assert detect(shapes_of(architecture, prefix)) == architecture


@pytest.mark.parametrize("name", [n for n in architecture_names() if n.startswith("mobile")])
@pytest.mark.parametrize(
    ("width", "size"), [(0.5, WIDE_INPUT), (1.0, (48, 112)), (0.375, (16, 16))]
)
def test_mobilefacenets_tell_their_width_and_input_size(name, width, size):
    architecture = Architecture(name, 128, width, size)
    assert detect(shapes_of(architecture)) == architecture


@pytest.mark.parametrize("width", [0.05, 0.3, 0.6, 0.9, 1.1])
def test_a_width_that_was_rounded_is_found_by_what_it_rounds_to(width):
    shapes = shapes_of(Architecture(width=width))
    assert shapes_of(detect(shapes)) == shapes


def test_input_sizes_between_multiples_of_16_are_taken_for_the_multiple():
    assert detect(shapes_of(Architecture(input_size=(100, 90)))).input_size == WIDE_INPUT


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", []),
        ("module.", []),
        ("backbone.", ["head.weight", "head.bias"]),
        ("model.", ["head.kernel", "head.t", "head.batch_mean", "head.batch_std"]),
        ("module.model.", ["module.head.kernel"]),
        ("net.", []),
        ("encoder.module.", ["kernel"]),
        ("", ["qs.weight", "qs.bias"]),
        ("module.", ["module.qs.weight", "module.qs.bias"]),
    ],
)
@pytest.mark.parametrize("name", ["iresnet18", "ir_18", "mobilefacenet", "mobilefacenet_arcface"])
def test_prefixes_and_classification_heads_are_disregarded(name, prefix, head):
    architecture = Architecture(name, 512)
    shapes = {**shapes_of(architecture, prefix), **dict.fromkeys(head, (512, 10))}
    names = list(shapes)
    random.Random(0).shuffle(names)
    assert detect({name: shapes[name] for name in names}) == architecture
    stripped = without_prefix(names)
    assert set(stripped.values()) == set(shapes_of(architecture))
    assert all(name == prefix + bare for name, bare in stripped.items())


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("features.module.", "parallel_fc.weight"),
        ("module.features.", "module.fc.weight"),
        ("features.", "fc.weight"),
    ],
)
def test_magface_is_told_by_its_prefix(prefix, head):
    architecture = Architecture("iresnet18_magface", 512)
    shapes = {**shapes_of(architecture, prefix), head: (512, 85742)}
    assert detect(shapes) == architecture
    assert head not in without_prefix(shapes)
    # Its own batch norm named `features` makes no MagFace of arcface_torch's network.
    assert detect(shapes_of(IRESNET18, "module.")) == IRESNET18


def test_counters_of_batch_norm_may_be_missing():
    shapes = shapes_of(IRESNET18)
    old = {name: shape for name, shape in shapes.items() if not name.endswith("batches_tracked")}
    assert len(old) < len(shapes)
    assert detect(old) == IRESNET18


def test_no_part_of_a_backbone_is_named_like_a_classification_head():
    for name in architecture_names():
        assert not CLASSIFICATION_HEADS & set(shapes_of(Architecture(name)))


def test_names_tell_the_architectures_apart():
    names = [n for n in architecture_names() if not n.endswith("_magface")]
    assert len({frozenset(shapes_of(Architecture(n))) for n in names}) == len(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.bias"), r"nearest is iresnet18 of .*: 1 missing \(layer2.0"),
        (lambda s: s.update(a=(1,), b=(1,)), r"iresnet18 of .*: 2 not known to it \(a, b\)"),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("layer4.1")],
            r"15 missing \(layer4\.1\.bn1\.bias, .*, \.\.\.\)$",
        ),
        (
            lambda s: s.update({"conv1.weight": (64, 3, 7, 7)}),
            r"of iresnet18, but 1 of .* \(conv1\.weight \(64, 3, 7, 7\) instead of \(64, 3, 3, 3",
        ),
        (lambda s: s.update({"fc.weight": (512,)}), r"fc\.weight \(512,\) instead of \(128, 25088"),
        (
            lambda s: s.update({"fc.weight": (512, 512 * 42)}),
            r"fc\.weight \(512, 21504\): expected 512 numbers for each position of a square",
        ),
        (lambda s: s.update({"fc.weight": (512, 25089)}), "position of a square"),
        (lambda s: s.update({"fc.weight": (0, 25088)}), "expected a positive embedding size"),
        (lambda s: s.update({"fc.weight": (512, 0)}), "expected a positive .* input size"),
        (lambda s: s.clear(), r"none of the 0 names \(\) belongs to a known architecture: ir_101"),
    ],
)
def test_near_misses_name_what_is_wrong(change, message):
    shapes = shapes_of(IRESNET18)
    change(shapes)
    with pytest.raises(ValueError, match=message):
        detect(shapes)


@pytest.mark.parametrize("prefix", ["model.", "module.features.", "features.module."])
def test_a_stray_name_beside_a_prefix_is_named(prefix):
    shapes = {**shapes_of(IRESNET18, prefix), "margin.weight": (10, 512)}
    with pytest.raises(ValueError, match=r"iresnet18 .*: 1 not known to it \(margin\.weight\)$"):
        detect(shapes)


def test_another_network_altogether_is_told_what_is_known():
    shapes = {"vit.norm.weight": (768,), "vit.norm.bias": (768,), "token": (1, 768)}
    with pytest.raises(ValueError, match=r"none of the 3 names \(token, vit\..*: ir_101, .*xiao"):
        detect(shapes)


@given(st.data())
def test_no_other_names_or_shapes_pass(data):
    name = data.draw(st.sampled_from(["iresnet18", "ir_18", "ir_50_evolve", "mobilefacenet_tface"]))
    shapes = shapes_of(Architecture(name, 512))
    parts = sorted(n for n in shapes if not n.endswith("num_batches_tracked"))
    chosen = data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=5, unique=True))
    kind = data.draw(st.sampled_from(["drop", "rename", "grow", "rank"]))
    for part in chosen:
        shape = shapes.pop(part)
        if kind == "rename":
            shapes[part.replace("weight", "w").replace("bias", "b").replace("running", "r")] = shape
        elif kind == "grow":
            shapes[part] = (shape[0] + 1, *shape[1:])
        elif kind == "rank":
            shapes[part] = (*shape, 1)
    with pytest.raises(ValueError, match=name):
        detect(shapes)


def test_published_and_packaged_checkpoints_are_detected(shared_data):
    folder = shared_data / "recognizers"
    for path, architecture in (
        (folder / "mobilefacenet_a.pt", Architecture()),
        (
            folder / "mobilefacenet_b.ckpt",
            Architecture("mobilefacenet_xiaoccer", input_size=WIDE_INPUT),
        ),
    ):
        assert detect({n: tuple(v.shape) for n, v in load_weights(path).items()}) == architecture


def test_the_packaged_recogniser_is_detected():
    description = json.loads(DEMO_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    shapes = {n: tuple(v.shape) for n, v in load_weights(DEMO_WEIGHTS).items()}
    assert detect(shapes) == Architecture.from_dict(description["architecture"])
