"""Parameters have the names and shapes of the publications, written down here as rules."""

import pytest
import torch

from sdd_ray.core.models import Architecture, architecture_names, build_backbone

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    101: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
# (inputs, hidden, outputs) of the bottlenecks: as in the paper, and with more channels.
PAPER = [
    *[(64, 128, 64)] * 5,
    (64, 256, 128),
    *[(128, 256, 128)] * 6,
    (128, 512, 128),
    *[(128, 256, 128)] * 2,
]
TWICE = [
    *[(128, 128, 128)] * 5,
    (128, 256, 256),
    *[(256, 256, 256)] * 6,
    (256, 512, 256),
    *[(256, 256, 256)] * 2,
]
LARGE = [
    *[(256, 128, 256)] * 11,
    (256, 256, 512),
    *[(512, 256, 512)] * 12,
    (512, 512, 512),
    *[(512, 256, 512)] * 4,
]
# Names of the convolution, the batch norm and the PReLU in each third of a bottleneck.
PARTS = {
    "relu": (("conv.0.0", "conv.0.1", ""), ("conv.1.0", "conv.1.1", ""), ("conv.2", "conv.3", "")),
    "xiaoccer": (
        ("conv.0", "conv.1", "conv.2"),
        ("conv.3", "conv.4", "conv.5"),
        ("conv.6", "conv.7", ""),
    ),
    "insightface": (
        ("conv.conv", "conv.bn", "conv.prelu"),
        ("conv_dw.conv", "conv_dw.bn", "conv_dw.prelu"),
        ("project.conv", "project.bn", ""),
    ),
    "arcface": (
        ("layers.0.layers.0", "layers.0.layers.1", "layers.0.layers.2"),
        ("layers.1.layers.0", "layers.1.layers.1", "layers.1.layers.2"),
        ("layers.2.layers.0", "layers.2.layers.1", ""),
    ),
}


def norm(name, channels, affine=True):
    parts = ["running_mean", "running_var", *(["weight", "bias"] if affine else [])]
    return {f"{name}.num_batches_tracked": (), **{f"{name}.{part}": (channels,) for part in parts}}


def unit(names, shape):
    conv, bn, prelu = names
    slopes = {f"{prelu}.weight": shape[:1]} if prelu else {}
    return {f"{conv}.weight": shape, **norm(bn, shape[0]), **slopes}


def labelled(name, shape, prelu=True):
    return unit((f"{name}.conv", f"{name}.bn", f"{name}.prelu" if prelu else ""), shape)


def wrapped(name, shape, prelu=True):
    names = (f"{name}.layers.{n}" for n in (0, 1))
    return unit((*names, f"{name}.layers.2" if prelu else ""), shape)


def bottlenecks(prefixes, sizes, parts):
    found = {}
    for prefix, (inputs, hidden, outputs) in zip(prefixes, sizes, strict=True):
        shapes = (hidden, inputs, 1, 1), (hidden, 1, 3, 3), (outputs, hidden, 1, 1)
        for names, shape in zip(PARTS[parts], shapes, strict=True):
            found |= unit([name and f"{prefix}.{name}" for name in names], shape)
    return found


def grouped(names, counts, inside):
    """Names of blocks that stand alone (count 0) or are numbered within a group."""
    for name, count in zip(names, counts, strict=True):
        yield from [f"{name}.{inside}.{n}" for n in range(count)] or [name]


def relu():
    return {
        **unit(("conv1.0", "conv1.1", ""), (64, 3, 3, 3)),
        **unit(("dw_conv.depthwise", "dw_conv.bn1", ""), (64, 1, 3, 3)),
        **unit(("dw_conv.pointwise", "dw_conv.bn2", ""), (64, 64, 1, 1)),
        **bottlenecks([f"features.{n}" for n in range(15)], PAPER, "relu"),
        **unit(("conv2.0", "conv2.1", ""), (512, 128, 1, 1)),
        **unit(("gdconv.depthwise", "gdconv.bn", ""), (512, 1, 7, 7)),
        **{"conv3.weight": (512, 512, 1, 1), "conv3.bias": (512,)},
        **norm("bn", 512),
    }


def xiaoccer():
    return {
        **labelled("conv1", (64, 3, 3, 3)),
        **labelled("dw_conv1", (64, 1, 3, 3)),
        **bottlenecks([f"blocks.{n}" for n in range(15)], PAPER, "xiaoccer"),
        **labelled("conv2", (512, 128, 1, 1)),
        **labelled("linear7", (512, 1, 7, 7), prelu=False),
        **labelled("linear1", (512, 512, 1, 1), prelu=False),
    }


def insightface(head="", affine=True):
    names = ["conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5"]
    return {
        **labelled("conv1", (64, 3, 3, 3)),
        **labelled("conv2_dw", (64, 1, 3, 3)),
        **bottlenecks(grouped(names, (0, 4, 0, 6, 0, 2), "model"), PAPER, "insightface"),
        **labelled("conv_6_sep", (512, 128, 1, 1)),
        **labelled(f"{head}conv_6_dw", (512, 1, 7, 7), prelu=False),
        f"{head}linear.weight": (512, 512),
        **norm(f"{head}bn", 512, affine),
    }


def arcface(sizes, counts):
    stem = sizes[0][0]
    names = [f"layers.{n}" for n in range(8 - len(counts), 8)]
    second = wrapped("layers.1", (stem, 2, 3, 3)) if len(counts) == 6 else {}
    return {
        **wrapped("layers.0", (stem, 3, 3, 3)),
        **second,
        **bottlenecks(grouped(names, counts, "layers"), sizes, "arcface"),
        **wrapped("conv_sep", (512, sizes[-1][2], 1, 1)),
        **wrapped("features.layers.0", (512, 1, 7, 7), prelu=False),
        "features.layers.2.weight": (512, 512),
        **norm("features.layers.3", 512),
    }


def stages(depth):
    """Yield stage, number in the stage, channels before and after, for each block."""
    inputs = 64
    for stage, repeats in enumerate(BLOCKS[depth]):
        for number in range(repeats):
            yield stage, number, inputs, 64 << stage
            inputs = 64 << stage


def iresnet(depth):
    found = unit(("conv1", "bn1", "prelu"), (64, 3, 3, 3))
    for stage, number, inputs, outputs in stages(depth):
        name = f"layer{stage + 1}.{number}"
        found |= norm(f"{name}.bn1", inputs)
        found |= unit((f"{name}.conv1", f"{name}.bn2", f"{name}.prelu"), (outputs, inputs, 3, 3))
        found |= unit((f"{name}.conv2", f"{name}.bn3", ""), (outputs, outputs, 3, 3))
        if number == 0:
            names = f"{name}.downsample.0", f"{name}.downsample.1", ""
            found |= unit(names, (outputs, inputs, 1, 1))
    head = {"fc.weight": (512, 25088), "fc.bias": (512,)}
    return {**found, **norm("bn2", 512), **head, **norm("features", 512)}


def ir(depth, excitation="", middle_norm=False, affine=False):
    found = unit(("input_layer.0", "input_layer.1", "input_layer.2"), (64, 3, 3, 3))
    for place, (_, _, inputs, outputs) in enumerate(stages(depth)):
        name = f"body.{place}.res_layer"
        found |= norm(f"{name}.0", inputs)
        found |= {f"{name}.1.weight": (outputs, inputs, 3, 3)}
        found |= norm(f"{name}.2", outputs) if middle_norm else {}
        last = 3 if middle_norm else 2
        found |= {f"{name}.{last}.weight": (outputs,)}
        found |= unit((f"{name}.{last + 1}", f"{name}.{last + 2}", ""), (outputs, outputs, 3, 3))
        if excitation:
            found[f"{name}.{excitation}.fc1.weight"] = (outputs // 16, outputs, 1, 1)
            found[f"{name}.{excitation}.fc2.weight"] = (outputs, outputs // 16, 1, 1)
        if inputs != outputs:
            names = f"body.{place}.shortcut_layer.0", f"body.{place}.shortcut_layer.1", ""
            found |= unit(names, (outputs, inputs, 1, 1))
    head = {"output_layer.3.weight": (512, 25088), "output_layer.3.bias": (512,)}
    last = norm("output_layer.4", 512, affine)
    return {**found, **norm("output_layer.0", 512), **head, **last}


PUBLISHED = {
    "mobilefacenet": relu,
    "mobilefacenet_xiaoccer": xiaoccer,
    "mobilefacenet_insightface": insightface,
    "mobilefacenet_tface": lambda: insightface("output_layer."),
    "mobilefacenet_torchkit": lambda: insightface("output_layer.", affine=False),
    "mobilefacenet_arcface": lambda: arcface(TWICE, (0, 4, 0, 6, 0, 2)),
    "mobilefacenet_arcface_large": lambda: arcface(LARGE, (2, 0, 8, 0, 12, 0, 4)),
    **{f"iresnet{d}": lambda d=d: iresnet(d) for d in (18, 34, 50, 100, 200)},
    **{f"iresnet{d}_magface": lambda d=d: iresnet(d) for d in (18, 34, 50, 100)},
    **{f"ir_{d}": lambda d=d: ir(d, middle_norm=True) for d in (18, 34, 50, 101)},
    **{f"ir_se_{d}": lambda d=d: ir(d, "se_block", middle_norm=True) for d in (50, 101)},
    **{f"ir_{d}_evolve": lambda d=d: ir(d, affine=True) for d in (50, 101, 152)},
    **{f"ir_se_{d}_evolve": lambda d=d: ir(d, "5", affine=True) for d in (50, 101, 152)},
    **{f"ir_{d}_curricular": lambda d=d: ir(d) for d in (50, 101, 152)},
    **{f"ir_se_{d}_curricular": lambda d=d: ir(d, "5") for d in (50, 101, 152)},
}


def empty(name, **sizes):
    """Return a network without the memory and the time that its weights would take."""
    with torch.device("meta"):
        return build_backbone(Architecture(name, **{"embedding_size": 512, **sizes}))


def shapes_of(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def test_every_architecture_is_described_here():
    assert sorted(PUBLISHED) == architecture_names()


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name):
    assert shapes_of(empty(name)) == PUBLISHED[name]()


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        ("iresnet34", 34.1, 1),  # 34.129 and 65.132 by Open Model Zoo, without the unused weights
        ("iresnet50", 43.6, 1),
        ("iresnet100", 65.2, 1),
        ("ir_se_101", 65.5, 1),  # cavaface, docs/MODEL_ZOO.md, as the next
        ("mobilefacenet_insightface", 1.20, 2),
    ],
)
def test_number_of_parameters_is_the_published_one(name, millions, digits):
    parameters = sum(p.numel() for p in empty(name).parameters())
    assert round(parameters / 1e6, digits) == millions


@pytest.mark.parametrize("name", ["mobilefacenet_xiaoccer", "mobilefacenet_arcface", "ir_18"])
def test_sizes_reach_the_head(name):
    network = empty(name, embedding_size=24, input_size=(112, 90))
    assert network.feature_shape == (512, 7, 6)
    assert network(torch.zeros(2, 3, 112, 90, device="meta")).shape == (2, 24)
