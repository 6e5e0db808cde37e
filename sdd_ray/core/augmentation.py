"""Random changes of training images, each decided by (seed, epoch, the image's key) alone.

So what happens to an image depends neither on the batch it is in nor on the workers, and a resumed
run goes on as it would have. All arithmetic on pixels is of whole numbers that every device
computes exactly, so it does not depend on the device either.

Shapes: N images of H rows and W columns, uint8 RGB; keys are 64-bit hashes of the image_ids.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional

from sdd_ray.core.hashing import GOLDEN, mix, unit_interval

Hashes = NDArray[np.uint64]

_LEVELS = 64
"""Strengths of each kind of damage; what belongs to one is computed once and kept."""

_MIRROR, _SHARE, _KIND, _LEVEL, _GRAIN = range(5)
"""What a hash decides."""

_WHOLE = 2048
"""Integer weights of a pixel's neighbours add up to this, and pixels between two passes count in
eighths (up to 2,040): numbers of at most 11 bits, which even a GPU's TF32 products hold exactly."""


def mirror(images: NDArray[np.uint8], keys: Hashes, seed: int, epoch: int) -> NDArray[np.uint8]:
    """Return the images, about half of them from right to left.

    Args:
        images: (N, H, W, 3).
        keys: (N,).
        seed: Of the run.
        epoch: Counted from 0.
    """
    mirrored = unit_interval(_hashes(keys, seed, epoch, _MIRROR)) < 0.5
    changed = images.copy()
    changed[mirrored] = images[mirrored, :, ::-1]
    return changed


def degrade(images: Tensor, keys: Hashes, share: float, seed: int, epoch: int) -> Tensor:
    """Return the images, about a share of them worse, each by one kind of damage.

    The kinds, equally likely, from weak to strong: Gaussian blur (sigma 0.5 to 3.5 % of a side),
    shrunk to 2/3 to 1/6 and enlarged, noise (standard deviation 3 to 25 grey levels), darker or
    brighter (gamma 2**0.5 to 2**1.5, or one over it), less contrast (3/4 to 1/4 left).

    To be called outside autocast, whose products are no longer exact.

    Args:
        images: (N, H, W, 3) uint8 on any device.
        keys: (N,).
        share: In [0, 1].
        seed: Of the run.
        epoch: Counted from 0.

    Returns:
        (N, H, W, 3) uint8 on the same device.
    """
    chosen = unit_interval(_hashes(keys, seed, epoch, _SHARE)) < share
    kinds = (unit_interval(_hashes(keys, seed, epoch, _KIND)) * len(_KINDS)).astype(np.int64)
    levels = (unit_interval(_hashes(keys, seed, epoch, _LEVEL)) * _LEVELS).astype(np.int64)
    grain = _hashes(keys, seed, epoch, _GRAIN)
    changed = images.clone()
    for kind, damage in enumerate(_KINDS):
        rows = np.flatnonzero(chosen & (kinds == kind))
        if rows.size:
            places = torch.from_numpy(rows).to(images.device)
            changed[places] = damage(images[places], levels[rows].tolist(), grain[rows])
    return changed


def _hashes(keys: Hashes, seed: int, epoch: int, purpose: int) -> Hashes:
    salt = np.zeros(1, np.uint64)
    for number in (seed, epoch, purpose):
        salt = mix((salt ^ np.uint64(number)) + GOLDEN)
    return mix(keys ^ salt)


def _blur(images: Tensor, levels: list[int], grain: Hashes) -> Tensor:
    del grain  # nothing about blur is random
    return _resample(images, levels, _blurring)


def _shrink(images: Tensor, levels: list[int], grain: Hashes) -> Tensor:
    del grain  # nothing about shrinking is random
    return _resample(images, levels, _shrinking)


def _noise(images: Tensor, levels: list[int], grain: Hashes) -> Tensor:
    count = images[0].numel()
    # Four values from each hash: counters of the image's own stream of SplitMix64.
    steps = np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * GOLDEN
    noise = np.empty((len(images), count), np.int16)
    for row, (start, level) in enumerate(zip(grain, levels, strict=True)):
        noise[row] = _normal_levels(level)[mix(start + steps).view(np.uint16)[:count]]
    added = torch.from_numpy(noise).to(images.device).reshape(images.shape)
    return (images + added).clamp(0, 255).to(torch.uint8)


def _expose(images: Tensor, levels: list[int], grain: Hashes) -> Tensor:
    del grain
    return _look_up(images, [_exposing(level) for level in levels])


def _flatten(images: Tensor, levels: list[int], grain: Hashes) -> Tensor:
    del grain
    return _look_up(images, [_flattening(level) for level in levels])


_KINDS = (_blur, _shrink, _noise, _expose, _flatten)


def _between(weak: float, strong: float, level: int) -> float:
    return weak + (strong - weak) * level / (_LEVELS - 1)


def _look_up(images: Tensor, tables: list[Tensor]) -> Tensor:
    """Return the images with each grey level replaced, by a table of 256 for each image."""
    values = torch.stack(tables).to(images.device)
    return values.gather(1, images.flatten(1).long()).reshape(images.shape)


def _resample(images: Tensor, levels: list[int], weights: Callable[[int, int], Tensor]) -> Tensor:
    """Return the images after a linear operation on their columns, then the same on their rows."""
    count, height, width, colours = images.shape
    down = torch.stack([weights(height, level) for level in levels]).to(images.device)
    across = torch.stack([weights(width, level) for level in levels]).to(images.device)
    # First (N, H, W * 3) in eighths of grey levels, then turned into (N, W, H * 3).
    mixed = (down @ images.flatten(2).float()).div_(_WHOLE / 8).round_()
    turned = mixed.reshape(count, height, width, colours).transpose(1, 2).flatten(2)
    mixed = (across @ turned).div_(_WHOLE * 8).round_()
    return mixed.to(torch.uint8).reshape(count, width, height, colours).transpose(1, 2)


def _whole_weights(weights: NDArray[np.float64]) -> Tensor:
    """Return (size, size) weights as whole numbers, each row with the sum _WHOLE exactly."""
    ends = np.rint(weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True) * _WHOLE)
    return torch.from_numpy(np.diff(ends, axis=1, prepend=0).astype(np.float32))


@lru_cache(maxsize=2 * _LEVELS)
def _blurring(size: int, level: int) -> Tensor:
    """Return (size, size) Gaussian weights; beyond the edge there is nothing."""
    sigma = size * _between(0.005, 0.035, level)
    place = np.arange(size)
    return _whole_weights(np.exp(-(((place[:, None] - place) / sigma) ** 2) / 2))


@lru_cache(maxsize=2 * _LEVELS)
def _shrinking(size: int, level: int) -> Tensor:
    """Return (size, size) weights of shrinking and enlarging again."""
    small = max(1, round(size * _between(2 / 3, 1 / 6, level)))
    # Resizing is linear: what it does to the unit vectors is its matrix.
    units = torch.eye(size, dtype=torch.float64)[None, None]
    shrunk = functional.interpolate(units, (small, size), mode="bilinear", antialias=True)
    enlarged = functional.interpolate(shrunk, (size, size), mode="bilinear")
    return _whole_weights(enlarged[0, 0].numpy())


@lru_cache(maxsize=_LEVELS)
def _normal_levels(level: int) -> NDArray[np.int16]:
    """Return the noise, in grey levels, that each of 65,536 equally likely numbers stands for."""
    quantiles: NDArray[np.float64] = ndtri((np.arange(2**16) + 0.5) / 2**16)
    return np.rint(quantiles * _between(3, 25, level)).astype(np.int16)


@lru_cache(maxsize=_LEVELS)
def _exposing(level: int) -> Tensor:
    """Return the grey level of each grey level under a gamma: bright below the middle level."""
    octaves = _between(-1, 1, level)
    gamma = 2.0 ** (octaves + np.copysign(0.5, octaves))
    return _table(255 * (np.arange(256) / 255) ** gamma)


@lru_cache(maxsize=_LEVELS)
def _flattening(level: int) -> Tensor:
    """Return the grey level of each grey level when contrast is lower around the middle one."""
    return _table(127.5 + (np.arange(256) - 127.5) * _between(0.75, 0.25, level))


def _table(values: NDArray[np.floating[Any]]) -> Tensor:
    return torch.from_numpy(np.rint(values).astype(np.uint8))
