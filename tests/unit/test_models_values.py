"""Networks compute what an evaluation step by step, written here from the papers, computes."""

from itertools import count

import pytest
import torch
from real_faces import SmallFaceNet
from torch.nn import functional as fn

from sdd_ray.core.models import (
    Architecture,
    QualityArchitecture,
    build_backbone,
    build_quality,
)
from sdd_ray.store.weights import load_weights

# Strides of the bottlenecks; arXiv:1804.07573, table 1, and arcface_torch's large one.
STRIDES = [2, 1, 1, 1, 1, 2, *[1] * 6, 2, 1, 1]
LARGE_STRIDES = [1, 1, 2, *[1] * 8, 2, *[1] * 12, 2, *[1] * 4]


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread: several wait for each other at every small layer of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(name, **sizes):
    """Return a network in double precision, every parameter and statistic of it drawn."""
    torch.manual_seed(0)
    network = build_backbone(Architecture(name, **{"embedding_size": 24, **sizes})).double().eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            value.uniform_(0.4, 0.9)  # the weights of batch norms and PReLUs, too
        elif value.ndim == 1:
            value.normal_(0, 0.3)
        elif value.ndim == 4:
            value.mul_(2.5)  # else the input's share fades on its way through the layers
    return network


def agree(network, evaluate, size):
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        ours = network(images)
        theirs = evaluate(network.state_dict(), images)
    cosines = fn.cosine_similarity(ours, theirs)
    assert cosines.min() > 0.999999
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())
    assert fn.cosine_similarity(ours[:1], ours[1:]).max() < 0.9999  # the images make a difference


def norm(state, name, maps, eps=1e-5):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return fn.batch_norm(
        maps, mean, var, state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps=eps
    )


def iresnet(eps):
    def evaluate(s, x):
        x = fn.conv2d(x, s["conv1.weight"], padding=1)
        x = fn.prelu(norm(s, "bn1", x, eps), s["prelu.weight"])
        for stage in (1, 2, 3, 4):
            for number in count():
                name = f"layer{stage}.{number}"
                if f"{name}.conv1.weight" not in s:
                    break
                y = fn.conv2d(norm(s, f"{name}.bn1", x, eps), s[f"{name}.conv1.weight"], padding=1)
                y = fn.prelu(norm(s, f"{name}.bn2", y, eps), s[f"{name}.prelu.weight"])
                stride = 2 if number == 0 else 1
                y = fn.conv2d(y, s[f"{name}.conv2.weight"], stride=stride, padding=1)
                y = norm(s, f"{name}.bn3", y, eps)
                if number == 0:
                    x = fn.conv2d(x, s[f"{name}.downsample.0.weight"], stride=2)
                    x = norm(s, f"{name}.downsample.1", x, eps)
                x = x + y
        x = norm(s, "bn2", x, eps).flatten(1)
        return norm(s, "features", fn.linear(x, s["fc.weight"], s["fc.bias"]), eps)

    return evaluate


def ir(blocks, middle_norm, excitation):
    halving = {sum(blocks[:stage]) for stage in range(4)}

    def evaluate(s, x):
        x = fn.conv2d(x, s["input_layer.0.weight"], padding=1)
        x = fn.prelu(norm(s, "input_layer.1", x), s["input_layer.2.weight"])
        for number in range(sum(blocks)):
            name, stride = f"body.{number}", 2 if number in halving else 1
            layer, place = f"{name}.res_layer", 2
            y = fn.conv2d(norm(s, f"{layer}.0", x), s[f"{layer}.1.weight"], padding=1)
            if middle_norm:
                y, place = norm(s, f"{layer}.2", y), 3
            y = fn.prelu(y, s[f"{layer}.{place}.weight"])
            y = fn.conv2d(y, s[f"{layer}.{place + 1}.weight"], stride=stride, padding=1)
            y = norm(s, f"{layer}.{place + 2}", y)
            if excitation:
                squeeze, excite = (s[f"{layer}.{excitation}.fc{n}.weight"] for n in (1, 2))
                factors = fn.relu(fn.conv2d(fn.adaptive_avg_pool2d(y, 1), squeeze))
                y = y * torch.sigmoid(fn.conv2d(factors, excite))
            if f"{name}.shortcut_layer.0.weight" in s:
                x = fn.conv2d(x, s[f"{name}.shortcut_layer.0.weight"], stride=stride)
                x = norm(s, f"{name}.shortcut_layer.1", x)
            else:
                x = x[:, :, ::stride, ::stride]
            x = x + y
        x = norm(s, "output_layer.0", x).flatten(1)
        x = fn.linear(x, s["output_layer.3.weight"], s["output_layer.3.bias"])
        return norm(s, "output_layer.4", x)

    return evaluate


def mobilefacenet(strides, has_second):
    """Evaluate from the order of the tensors alone, so that their names do not matter."""

    def evaluate(state, x):
        tensors = [value for value in state.values() if value.ndim]
        names = [name.rsplit(".", 1)[1] for name, value in state.items() if value.ndim]

        def unit(x, stride=1, padding=0):
            weight = tensors.pop(0)
            names.pop(0)
            if weight.ndim == 4:
                x = fn.conv2d(
                    x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1]
                )
            else:
                x = fn.linear(x.flatten(1), weight)
            scale = [None, None]
            if names[0] == "weight":
                scale = [tensors.pop(0) for _ in range(2)]
                del names[:2]
            x = fn.batch_norm(x, tensors.pop(0), tensors.pop(0), *scale)
            del names[:2]
            if tensors and tensors[0].ndim == 1:
                x = fn.prelu(x, tensors.pop(0))
                names.pop(0)
            return x

        x = unit(x, 2, 1)
        x = unit(x, 1, 1) if has_second else x
        for stride in strides:
            y = unit(unit(unit(x), stride, 1))
            x = x + y if stride == 1 and x.shape == y.shape else y
        x = unit(unit(unit(x))).flatten(1)
        assert not tensors
        return x

    return evaluate


@pytest.mark.parametrize(
    ("name", "evaluate"),
    [
        ("iresnet18", iresnet(1e-5)),
        ("iresnet18_magface", iresnet(2e-5)),
        ("ir_18", ir((2, 2, 2, 2), True, "")),
        ("ir_se_50", ir((3, 4, 14, 3), True, "se_block")),
        ("ir_se_50_evolve", ir((3, 4, 14, 3), False, "5")),
        ("mobilefacenet_xiaoccer", mobilefacenet(STRIDES, True)),
        ("mobilefacenet_insightface", mobilefacenet(STRIDES, True)),
        ("mobilefacenet_tface", mobilefacenet(STRIDES, True)),
        ("mobilefacenet_torchkit", mobilefacenet(STRIDES, True)),
        ("mobilefacenet_arcface", mobilefacenet(STRIDES, True)),
        ("mobilefacenet_arcface_large", mobilefacenet(LARGE_STRIDES, False)),
    ],
)
def test_embeddings_are_those_of_an_evaluation_step_by_step(name, evaluate):
    size = (48, 33)
    agree(drawn(name, input_size=size), evaluate, size)


def test_published_checkpoint_embeds_as_by_another_definition(shared_data, cfp_images):
    path = shared_data / "recognizers" / "mobilefacenet_b.ckpt"
    state = load_weights(path)
    network = build_backbone(Architecture("mobilefacenet_xiaoccer", input_size=(112, 96))).eval()
    network.load_state_dict(state, strict=True)
    other = SmallFaceNet().eval()
    other.load_state_dict(state)
    faces = torch.from_numpy(cfp_images[:, :, 8:104].copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours, theirs = (n((faces.float() - 127.5) / 128) for n in (network, other))
    assert fn.cosine_similarity(ours, theirs).min() > 0.999999
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


SMALL = (32, 48)


@pytest.mark.parametrize(
    "name",
    ["iresnet18", "ir_18", "ir_se_50_evolve", "mobilefacenet_tface", "mobilefacenet_arcface"],
)
def test_quality_networks_train_further_from_a_recogniser(name):
    architecture = Architecture(name, embedding_size=16, input_size=SMALL)
    torch.manual_seed(0)
    recogniser = build_backbone(architecture)
    network = build_quality(QualityArchitecture(architecture, dropout=0.0))
    network.start_from(recogniser)
    images = torch.randn(4, 3, *SMALL)
    quality = network(images)
    assert (quality - 50).abs().max() < 1
    quality.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    first = next(network.parameters())
    assert first.grad.abs().max() > 0
    network.eval()
    recogniser.eval()
    recogniser.load_state_dict(network.backbone.state_dict(), strict=False)
    with torch.no_grad():
        features = network.backbone.feature_map(images)
        assert tuple(features.shape[1:]) == network.backbone.feature_shape
        assert torch.equal(features, recogniser.feature_map(images))


def test_last_batch_norm_of_iresnet_keeps_its_weights():
    network = build_backbone(Architecture("iresnet18", embedding_size=16, input_size=SMALL))
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["features.weight"]
    assert torch.equal(network.features.weight, torch.ones(16))


def test_other_widths_of_iresnets_are_refused():
    with pytest.raises(ValueError, match=r"expected width 1, the only one .*, got 0\.5"):
        build_backbone(Architecture("ir_18", width=0.5))
