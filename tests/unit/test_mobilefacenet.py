import numpy as np
import pytest
import torch

from sdd_ray.core.models import (
    Architecture,
    MobileFaceNet,
    QualityArchitecture,
    architecture_names,
    build_backbone,
    build_quality,
)
from sdd_ray.core.preprocess import PRESETS


def test_number_of_parameters_is_that_of_the_paper():
    network = MobileFaceNet()
    assert len(network.state_dict()) == 307
    # Table 1 of arXiv:1804.07573 says 0.99 million without batch normalisation's.
    weights = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert 0.98e6 < weights < 1.05e6


@pytest.mark.parametrize("input_size", [(112, 112), (112, 96), (64, 50), (33, 17)])
@pytest.mark.parametrize("width", [0.25, 0.6])
def test_feature_shape_is_what_comes_out(input_size, width):
    network = MobileFaceNet(embedding_size=24, width=width, input_size=input_size).eval()
    images = torch.zeros(2, 3, *input_size)
    with torch.inference_mode():
        assert tuple(network.feature_map(images).shape[1:]) == network.feature_shape
        assert network(images).shape == (2, 24)


def test_embeddings_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = MobileFaceNet(width=0.25).eval()
    images = torch.randn(5, 3, 112, 112)
    with torch.inference_mode():
        whole = network(images)
        single = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)


def test_trunk_has_the_recognisers_names_and_no_embedding_head():
    recogniser = MobileFaceNet(width=0.25).state_dict()
    quality = build_quality(QualityArchitecture(Architecture(width=0.25)))
    trunk = quality.backbone.state_dict()
    assert set(trunk) == {k for k in recogniser if k.split(".")[0] not in ("gdconv", "conv3", "bn")}


@pytest.mark.parametrize(
    "arguments", [{"width": 0}, {"input_size": (0, 112)}, {"embedding_size": 0}]
)
def test_sizes_must_be_positive(arguments):
    with pytest.raises(ValueError, match="expected a positive embedding size, width and input"):
        MobileFaceNet(**arguments)


def test_unknown_architecture_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'mobilefacenet', .*\], got 'mobilfacenet'"):
        build_backbone(Architecture(name="mobilfacenet"))
    names = architecture_names()
    assert names == sorted(names)
    assert {"mobilefacenet", "iresnet50", "ir_se_50"} <= set(names)


def test_architecture_survives_json():
    architecture = Architecture(embedding_size=64, width=0.5, input_size=(112, 96))
    description = architecture.to_dict()
    assert description["input_size"] == [112, 96]
    assert Architecture.from_dict(description) == architecture
    assert Architecture.from_dict({}) == Architecture()
    with pytest.raises(ValueError, match="embeding_size"):
        Architecture.from_dict({"embeding_size": 64})


def test_published_weights_fit_and_agree_with_their_onnx_export(shared_data, cfp_images):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = shared_data / "recognizers"
    network = build_backbone(Architecture()).eval()
    state = torch.load(folder / "mobilefacenet_a.pt", weights_only=True, map_location="cpu")
    network.load_state_dict(state, strict=True)
    inputs = PRESETS["imagenet"].apply(cfp_images)
    with torch.inference_mode():
        ours = network(torch.from_numpy(inputs)).numpy()
    session = onnxruntime.InferenceSession(folder / "mobilefacenet_a.onnx")
    theirs = np.concatenate([session.run(None, {"input": x[None]})[0] for x in inputs])
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
