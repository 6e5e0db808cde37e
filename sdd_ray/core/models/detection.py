"""Which architecture the weights of a checkpoint belong to, from their names and shapes.

An architecture is only ever named when all names and shapes are its own, so a wrong one cannot come
out. What no shape shows cannot be detected: the preprocessing (AdaFace's IR networks expect BGR),
input sizes that share a feature map, and the epsilon of batch normalisation, in which alone
MagFace's networks differ from arcface_torch's: they are told by their prefix, where it is left.

Shapes: E numbers in an embedding, C channels, h and w rows and columns of the feature map.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from operator import itemgetter

import torch

from sdd_ray.core.models.iresnet import IRESNETS
from sdd_ray.core.models.mobilefacenet import MOBILEFACENETS
from sdd_ray.core.models.registry import Architecture, architecture_names, build_backbone
from sdd_ray.core.models.trunk import pixels_seen

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "encoder.", "features.")
"""What the names of a backbone may begin with when it was trained as a part of something else.

`module.` comes from data-parallel training, `_orig_mod.` from torch.compile; `model.` AdaFace,
`net.` CVLFace, `features.module.` and `module.features.` MagFace."""

CLASSIFICATION_HEADS = frozenset(
    {
        *("head.kernel", "head.t", "head.batch_mean", "head.batch_std"),  # AdaFace
        *("head.weight", "head.bias", "kernel"),
        "parallel_fc.weight",  # MagFace, trained on several machines
        *("qs.weight", "qs.bias"),  # CR-FIQA: its quality, from the embedding
    }
)
"""Names that hold no part of a backbone, but of what was put on the embedding in training."""

_HEAD_BESIDE_PREFIX = "fc.weight"  # MagFace's head, but a backbone's layer in iresnet
_MAGFACE_PREFIX = "features."
_MAGFACE_SUFFIX = "_magface"
_COUNTER = "num_batches_tracked"  # not there in checkpoints of torch 0.4.0, and of no effect
_CHANNELS = 512  # of every feature map at width 1
_DESIGNS = {**MOBILEFACENETS, **IRESNETS}
_SHOWN = 3


def without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Return the names of a checkpoint's backbone and what they are without a common prefix.

    Known prefixes are taken off one after another as long as all names share one. Names of a
    classification head neither count nor are returned. A name that is neither is kept as it is, for
    `detect` to complain about.

    Example:
        >>> without_prefix(["model.conv1.weight", "model.fc.weight", "head.kernel"])
        {'model.conv1.weight': 'conv1.weight', 'model.fc.weight': 'fc.weight'}
    """
    return _split(names)[1]


def detect(shapes: Shapes) -> Architecture:
    """Return the architecture whose weights have these names and shapes.

    A known prefix, a known classification head and the counters of batch normalisation are
    disregarded. An input size is taken to be 16 pixels for each position of the feature map, and
    the feature map to be square where a linear layer tells only the number of its positions.

    Args:
        shapes: Shape of each tensor of a checkpoint, by name, in any order.

    Raises:
        ValueError: No architecture fits; says which came nearest, and what is missing there, extra,
            or of another shape.

    Example:
        >>> network = build_backbone(Architecture(width=0.25, input_size=(112, 96)))
        >>> state = network.state_dict()
        >>> detect({f"module.{name}": tuple(state[name].shape) for name in state})
        Architecture(name='mobilefacenet', embedding_size=128, width=0.25, input_size=(112, 96))
    """
    prefix, names = _split(shapes)
    found = {bare: tuple(shapes[n]) for n, bare in names.items() if not bare.endswith(_COUNTER)}
    fitting = [name for name in architecture_names() if _usual(name).keys() == found.keys()]
    if not fitting:
        raise ValueError(_nearest(found))
    if len(fitting) > 1:  # MagFace's differ in no name
        is_magface = _MAGFACE_PREFIX in prefix
        fitting = [name for name in fitting if name.endswith(_MAGFACE_SUFFIX) == is_magface]
    architecture = _sized(fitting[0], found)
    expected = _shapes(architecture)
    unfit = [name for name, shape in expected.items() if found[name] != shape]
    if unfit:
        shown = [f"{name} {found[name]} instead of {expected[name]}" for name in unfit]
        raise ValueError(
            f"all names are those of {architecture.name}, but {len(unfit)} of {len(found)} tensors"
            f" are of another shape ({_first(shown)})"
        )
    return architecture


def _split(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the common prefix, and the names with and without it."""
    bare = {name: name for name in names}
    whole = ""
    while prefix := _shared_prefix(bare.values()):
        whole += prefix
        bare = {n: b.removeprefix(prefix) for n, b in bare.items() if b.startswith(prefix)}
    return whole, {n: b for n, b in bare.items() if b not in CLASSIFICATION_HEADS}


def _shared_prefix(names: Collection[str]) -> str:
    for prefix in PREFIXES:
        others = {name for name in names if not name.startswith(prefix)}
        if len(others) < len(names) and others <= {*CLASSIFICATION_HEADS, _HEAD_BESIDE_PREFIX}:
            return prefix
    return ""


def _usual(name: str) -> Shapes:
    return _shapes(Architecture(name))


@cache
def _shapes(architecture: Architecture) -> Shapes:
    with torch.device("meta"):
        state = build_backbone(architecture).state_dict()
    return {n: tuple(value.shape) for n, value in state.items() if not n.endswith(_COUNTER)}


def _sized(name: str, found: Shapes) -> Architecture:
    """Return the architecture with the sizes that its head's shapes tell, if they tell any."""
    design = _DESIGNS[name]
    embedding, pooling = found[design.embedding], found[design.pooling]
    ranks = [len(_usual(name)[n]) for n in (design.embedding, design.pooling)]
    if [len(embedding), len(pooling)] != ranks:
        return Architecture(name)
    if len(pooling) == 4:
        channels, _, height, columns = pooling
    else:
        channels, side = _CHANNELS, math.isqrt(pooling[1] // _CHANNELS)
        height, columns = side, side
        if side * side * _CHANNELS != pooling[1]:
            raise ValueError(
                f"{design.pooling} {pooling}: expected {_CHANNELS} numbers for each position of a"
                " square feature map; for other images name the architecture and its input size"
            )
    input_size = (pixels_seen(height), pixels_seen(columns))
    return Architecture(name, embedding[0], channels / _CHANNELS, input_size)


def _nearest(found: Shapes) -> str:
    """Return what is wrong with the names, measured by the architecture that differs least.

    Prefixes are tried here even where a stray name lacks them: that name is what is wrong.
    """
    prefixes = {"".join(parts) for parts in product(("", *PREFIXES), repeat=2)}
    present = [prefix for prefix in prefixes if any(n.startswith(prefix) for n in found)]
    candidates = [
        (len(known ^ names), name, known, names)
        for names in ({n.removeprefix(prefix) for n in found} for prefix in present)
        for name in architecture_names()
        if (known := _usual(name).keys()) & names
    ]
    if not candidates:
        return (
            f"none of the {len(found)} names ({_first(sorted(found))}) belongs to a known"
            f" architecture: {', '.join(architecture_names())}"
        )
    _, name, known, names = min(candidates, key=itemgetter(0, 1))
    differences = [
        f"{len(unfit)} {kind} ({_first(sorted(unfit))})"
        for unfit, kind in ((known - names, "missing"), (names - known, "not known to it"))
        if unfit
    ]
    return (
        f"the names belong to no known architecture; nearest is {name} of {len(known)} tensors:"
        f" {'; '.join(differences)}"
    )


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
