"""Networks for tests."""

from functools import cache

import torch
from torch import nn

from sdd_ray.core.models import Architecture, build_backbone


@cache
def settled_backbone(architecture: Architecture) -> nn.Module:
    """Return a recogniser with random weights whose embeddings differ from image to image.

    Its batch normalisation has the statistics of noise: with those it is born with, deep networks
    give one embedding to all images, and a test of equal embeddings could not fail. Equal calls
    return one network, so copy it before changing it.
    """
    torch.manual_seed(0)
    network = build_backbone(architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, here of the one
    with torch.no_grad():
        network(2 * torch.rand(4, 3, *architecture.input_size) - 1)
    return network.eval()
