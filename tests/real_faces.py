"""Embeddings of real faces by two recognisers of the public, for tests; nothing of it is kept."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.similarity import normalise
from sdd_ray.store.onnx_recogniser import OnnxRecogniser

BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def faces(archive: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Return (N, 112, 112, 3) images, (N,) codes of their people, and their names."""
    found = []
    with tarfile.open(archive) as members:
        for member in members:
            content = members.extractfile(member)
            if content is not None and member.name.endswith(".jpg"):
                found.append((member.name.removeprefix("./"), content.read()))
    found.sort()
    names = [name for name, _ in found]
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in found]
    )
    _, codes = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    return images, codes.astype(np.int64), names


def embedded_by_a(images: NDArray[np.uint8], weights: Path) -> NDArray[np.float32]:
    """Return unit embeddings by the MobileFaceNet trained on MS1M, an ONNX file."""
    preprocessing = Preprocessing(
        scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    network = OnnxRecogniser(weights, preprocessing)
    return normalise(network.embed(images))[0]


def embedded_by_b(images: NDArray[np.uint8], weights: Path) -> NDArray[np.float32]:
    """Return unit embeddings by the MobileFaceNet trained on CASIA-WebFace, a checkpoint."""
    state = torch.load(weights, map_location="cpu", weights_only=True)["net_state_dict"]
    network = SmallFaceNet().eval()
    network.load_state_dict(state)
    found = []
    with torch.inference_mode():
        for first in range(0, len(images), 64):
            pixels = torch.from_numpy(images[first : first + 64, :, 8:104].copy())
            found.append(network((pixels.permute(0, 3, 1, 2).float() - 127.5) / 128.0))
    return normalise(torch.cat(found).numpy())[0]


class Unit(nn.Module):
    """Convolution, batch norm, and PReLU if not linear."""

    def __init__(self, sizes, kernel, stride=1, padding=0, depthwise=False, linear=False):
        super().__init__()
        groups = sizes[0] if depthwise else 1
        self.conv = nn.Conv2d(*sizes, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(sizes[1])
        self.prelu = nn.Identity() if linear else nn.PReLU(sizes[1])

    def forward(self, x):
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, inner, outer, stride, expansion):
        super().__init__()
        wide = inner * expansion
        self.has_shortcut = stride == 1 and inner == outer
        self.conv = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x):
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class SmallFaceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = Unit((3, 64), 3, 2, 1)
        self.dw_conv1 = Unit((64, 64), 3, 1, 1, depthwise=True)
        blocks, inner = [], 64
        for expansion, outer, repeats, stride in BLOCKS:
            for number in range(repeats):
                blocks.append(Bottleneck(inner, outer, stride if number == 0 else 1, expansion))
                inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = Unit((128, 512), 1)
        self.linear7 = Unit((512, 512), (7, 6), depthwise=True, linear=True)
        self.linear1 = Unit((512, 128), 1, linear=True)

    def forward(self, x):
        x = self.conv2(self.blocks(self.dw_conv1(self.conv1(x))))
        return self.linear1(self.linear7(x)).flatten(1)
