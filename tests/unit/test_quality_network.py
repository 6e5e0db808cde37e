import pytest
import torch
from torch import nn

from sdd_ray.core.models import Architecture, MobileFaceNet, QualityArchitecture, build_quality

SMALL = Architecture(width=0.25, input_size=(64, 48))


def _network(**options):
    torch.manual_seed(0)
    return build_quality(QualityArchitecture(backbone=SMALL, **options))


@pytest.mark.parametrize(("head", "inputs"), [("flatten", 128 * 4 * 3), ("average", 128)])
def test_head_has_the_layers_of_the_paper(head, inputs):
    network = _network(head=head, dropout=0.3)
    layers = [m for m in network.head if not isinstance(m, nn.Flatten | nn.AdaptiveAvgPool2d)]
    prelu, dropout, linear = layers
    assert isinstance(prelu, nn.PReLU)
    assert prelu.num_parameters == inputs
    assert dropout.p == 0.3
    assert (linear.in_features, linear.out_features) == (inputs, 1)


def test_flattened_head_of_the_full_network_has_the_papers_size():
    assert build_quality(QualityArchitecture()).head[-1].in_features == 25088


@pytest.mark.parametrize("head", ["flatten", "average"])
@pytest.mark.parametrize("training", [False, True])
def test_prediction_starts_near_the_initial_quality(head, training):
    network = _network(head=head, initial_quality=37.0).train(training)
    with torch.no_grad():
        quality = network(torch.randn(4, 3, 64, 48))
    assert quality.shape == (4,)
    assert (quality - 37.0).abs().max() < 1.0
    if training:  # Before training, the statistics used in evaluation flatten every feature.
        assert quality.std() > 0


def test_every_parameter_receives_a_gradient():
    network = _network(dropout=0.0)
    network(torch.randn(4, 3, 64, 48)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.backbone.conv1[0].weight.grad.abs().max() > 0


def test_flatten_weighs_positions_and_average_does_not():
    features = torch.rand(1, 128, 4, 3)
    for head, changes in (("flatten", True), ("average", False)):
        layers = _network(head=head).eval().head
        with torch.no_grad():
            difference = (layers(features) - layers(features.flip(3))).abs().item()
        assert (difference > 1e-4) is changes


def test_start_from_copies_the_trunk_and_leaves_the_head():
    network = _network()
    head = network.head[-1].weight.clone()
    torch.manual_seed(1)
    recogniser = MobileFaceNet(width=0.25, input_size=(64, 48))
    network.start_from(recogniser)
    images = torch.randn(2, 3, 64, 48)
    network.eval()
    recogniser.eval()
    with torch.no_grad():
        assert torch.equal(network.backbone.feature_map(images), recogniser.feature_map(images))
    assert torch.equal(network.head[-1].weight, head)


def test_start_from_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"have another shape, first conv1\.0\.weight"):
        _network().start_from(MobileFaceNet(width=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head": "max"}, "'flatten' or 'average', got 'max'"), ({"dropout": 1.0}, "dropout in")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _network(**options)


def test_description_survives_json():
    architecture = QualityArchitecture(backbone=SMALL, head="average", dropout=0.1)
    assert QualityArchitecture.from_dict(architecture.to_dict()) == architecture
    with pytest.raises(ValueError, match="haed"):
        QualityArchitecture.from_dict({"haed": "average"})
