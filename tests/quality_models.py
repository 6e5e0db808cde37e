"""A small quality model whose raw qualities of drawn faces spread over its calibration."""

import copy
import functools

import numpy as np
import torch
from drawn_faces import face

from sdd_ray.core.calibration import QuantileMap
from sdd_ray.core.fitting import predict
from sdd_ray.core.models import Architecture, QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.settings import TrainConfig
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, save_model
from sdd_ray.store.run import OutputRun, PartRecord

_SPREAD = 100.0
"""The last layer is drawn small; times this, raw qualities differ as those of trained models do."""


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def made_model(preprocessing=None, seed=0):
    """Return a model that was never trained: its qualities are arbitrary, and always the same."""
    return copy.deepcopy(_made(preprocessing or Preprocessing(), seed))


@functools.cache
def _made(preprocessing, seed):
    torch.manual_seed(seed)
    architecture = QualityArchitecture(
        backbone=Architecture(width=0.25, input_size=(preprocessing.height, preprocessing.width)),
        head="average",
        dropout=0.2,
    )
    network = build_quality(architecture)
    drawn = torch.tensor(pixels([face(person, 0) for person in range(8)]))
    faces = preprocessing.apply_tensor(drawn)
    with torch.no_grad():
        network.head[-1].weight *= _SPREAD
        for layer in network.modules():  # They learn what is usual; without, all is one value.
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = None
        for _ in range(3):
            network(faces)
    raw = predict(network.eval(), faces)
    return QualityModel(network, architecture, preprocessing, QuantileMap.fit(raw))


def write_model(folder, model):
    """Write a model folder as train does; return its path."""
    place = Location(str(folder))
    run = OutputRun(place, "train", TrainConfig(labels="l", output=place.uri))
    digest = save_model(place, model)
    run.complete([PartRecord("model", 8, 8, digest, 1, suffix=".safetensors")])
    return place.uri
