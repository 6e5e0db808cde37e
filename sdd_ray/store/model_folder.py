"""The model folder: everything that is needed to score images, in two files.

`model.safetensors` holds the weights; `model.json` describes the network and names the digest of
the weights. The description is written last, so a folder without it is visibly unfinished. A folder
may lie on S3.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from sdd_ray.core.calibration import Calibration, calibration_from_dict
from sdd_ray.core.models import QualityArchitecture, QualityNetwork, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.thresholds import Acceptance, Threshold
from sdd_ray.errors import InputError, OutputError, WeightsError
from sdd_ray.store.location import Location
from sdd_ray.store.weights import fit_weights, parse_safetensors, safetensors_bytes

FORMAT = 1
WEIGHTS_NAME = "model.safetensors"
DESCRIPTION_NAME = "model.json"
SPLITS_NAME = "splits.parquet"
"""Which identities the model was trained on, beside it."""

_KEYS = {"format", "architecture", "preprocessing", "calibration", "record", "weights_sha256"}


@dataclass(frozen=True)
class QualityModel:
    """A quality network and what belongs to it.

    Attributes:
        network: Raw qualities from preprocessed images.
        architecture: How the network is built.
        preprocessing: What it expects of its input.
        calibration: From raw qualities to [0, 100].
        record: How it was trained: plain JSON values, for people.
        thresholds: Of quality, by name.
        calibrated: What the calibration was fitted on, and its version: plain JSON values.
        digest: SHA-256 of the weights; empty before they are saved.
    """

    network: QualityNetwork
    architecture: QualityArchitecture
    preprocessing: Preprocessing
    calibration: Calibration
    record: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    calibrated: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def acceptance(self, threshold: str | int) -> Acceptance:
        """Return which images a threshold accepts: an integer quality, or a name.

        Raises:
            InputError: The model has no threshold of this name.
        """
        if isinstance(threshold, Integral):  # also numpy's
            return Acceptance(int(threshold), is_raw=False)
        if not isinstance(threshold, str) or threshold not in self.thresholds:
            known = ", ".join(sorted(self.thresholds)) or "none; see calibrate"
            raise InputError(f"the model has no threshold {threshold!r}; it has {known}")
        return Acceptance(self.thresholds[threshold].raw, is_raw=True)


def save_model(folder: Location, model: QualityModel) -> str:
    """Write a model folder and return the SHA-256 of its weights.

    Raises:
        OutputError: The folder already holds a model, or cannot be written.
        WeightsError: The network is not the one that the architecture describes.
    """
    if (folder / DESCRIPTION_NAME).exists():
        raise OutputError(f"{folder.uri} already holds a model; choose another folder")
    weights = dict(model.network.state_dict())
    # The folder must open again: better to fail here than when the images are there to be scored.
    fit_weights(build_quality(model.architecture), weights, "the network to save")
    content = safetensors_bytes(weights)
    found = hashlib.sha256(content).hexdigest()
    description = {
        "format": FORMAT,
        "architecture": model.architecture.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
        "calibration": model.calibration.to_dict(),
        "calibrated": dict(model.calibrated),
        "thresholds": {name: found.to_dict() for name, found in model.thresholds.items()},
        "record": dict(model.record),
        "weights_sha256": found,
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    (folder / WEIGHTS_NAME).write_bytes(content)
    (folder / DESCRIPTION_NAME).write_bytes(text.encode())
    return found


def load_model(folder: Location) -> QualityModel:
    """Return the model of a folder, its network on the CPU and set to evaluation.

    Raises:
        InputError: The folder holds no finished model, or its description is damaged.
        WeightsError: The weights are not those that the description names, or do not fit.
    """
    if not (folder / DESCRIPTION_NAME).exists():
        raise InputError(
            f"{folder.uri}: expected a model folder with {DESCRIPTION_NAME}; it is another folder,"
            " or training has not finished"
        )
    description = _read_description(folder / DESCRIPTION_NAME)
    content = (folder / WEIGHTS_NAME).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != description["weights_sha256"]:
        raise WeightsError(
            f"{(folder / WEIGHTS_NAME).uri}: expected SHA-256 {description['weights_sha256']},"
            f" got {digest}; the file is damaged or was replaced"
        )
    try:
        architecture = QualityArchitecture.from_dict(description["architecture"])
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        calibration = calibration_from_dict(description["calibration"])
        found = description.get("thresholds", {})  # models of the first version have none
        thresholds = {name: Threshold.from_dict(tree) for name, tree in found.items()}
        network = build_quality(architecture)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{(folder / DESCRIPTION_NAME).uri}: {error}") from error
    weights_uri = (folder / WEIGHTS_NAME).uri
    fit_weights(network, parse_safetensors(content, weights_uri), weights_uri)
    return QualityModel(
        network.eval(),
        architecture,
        preprocessing,
        calibration,
        description["record"],
        thresholds,
        description.get("calibrated", {}),
        digest,
    )


def _read_description(location: Location) -> dict[str, Any]:
    try:
        description = json.loads(location.read_bytes())
    except ValueError as error:
        raise InputError(f"{location.uri}: damaged: {error}") from error
    if not isinstance(description, dict) or not set(description) >= _KEYS:
        raise InputError(f"{location.uri}: expected a model's description with {sorted(_KEYS)}")
    if description["format"] != FORMAT:
        raise InputError(
            f"{location.uri}: expected format {FORMAT}, got {description['format']}; a newer"
            " version of sdd_ray may have written it"
        )
    return description
