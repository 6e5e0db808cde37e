"""Export a model: write the ONNX file, compare it with the model, describe it in a card."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.statistics import rank_correlation
from sdd_ray.engine.model_card import model_card
from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.items import Listing
from sdd_ray.formats.reading import read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import ExportConfig, SourceConfig
from sdd_ray.store.calibrating import evaluated_method
from sdd_ray.store.dataset import open_dataset, read_json
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, load_model
from sdd_ray.store.onnx_export import onnx_bytes, run_onnx
from sdd_ray.store.quality import QualityRunner
from sdd_ray.store.run import MANIFEST, OutputRun, PartRecord, peak_memory_mib

MODEL, CARD = "model.onnx", "MODEL_CARD.md"
_BATCHES = (1, 7, 64)
"""Sizes that the file is compared at: its batch size is free."""
_TOLERANCE = 1e-4
"""Of the span of raw qualities; float32 only. Halves and integers are measured, not judged."""
_LEAST_SPAN = 0.01
"""Of the largest raw quality, for the span to compare differences with."""
_LEAST_FACES = 16
_THREADS = 4

Faces = NDArray[np.uint8]


def export_model(config: ExportConfig, folder: Location, output: OutputRun) -> None:
    """Write the file and its card.

    Raises:
        InputError: The model, the images or the evaluation cannot be read.
        ResourceError: Packages are missing.
        SddError: The file in float32 computes otherwise than the model.
    """
    model = load_model(folder)
    evaluated = _evaluated(config, model)
    faces = _faces(config.source, config.num_images)
    half = len(faces) // 2 if config.precision == "int8" else 0
    content = onnx_bytes(load_model(folder), config.precision, faces[:half] if half else None)
    figures = compare(model, content, faces[half:])
    if config.precision == "float32" and not figures["largest_raw_difference"] <= _TOLERANCE:
        raise SddError(
            "the ONNX file computes otherwise than the model: raw qualities differ by up to"
            f" {figures['largest_raw_difference']:.2g} of their span, expected at most"
            f" {_TOLERANCE:g}; please report this with the versions of torch and onnxruntime"
        )
    results = {"precision": config.precision, "bytes": len(content), **figures}
    (output.output / MODEL).write_bytes(content)
    card = model_card(model, results, evaluated)
    (output.output / CARD).write_bytes(card.encode())
    digest = hashlib.sha256(content).hexdigest()
    number = len(faces)
    record = PartRecord("model", number, number, digest, peak_memory_mib(), [], ".onnx")
    output.complete([record], results)


def compare(model: QualityModel, content: bytes, faces: Faces) -> dict[str, Any]:
    """Return how far an ONNX file is from its model, at several batch sizes.

    Args:
        model: The model.
        content: Of the file.
        faces: (N, 112, 112, 3) pixels.

    Returns:
        `images`; `largest_raw_difference` as a share of the span of the raw qualities,
        `largest_quality_difference` in points of 0 to 100, `spearman` of the raw qualities.
    """
    wanted = np.concatenate(list(QualityRunner(model, "cpu").qualities(_batches(faces, 32))))
    raw = wanted[:, 0]
    # Where all images are nearly equal, float32 has few numbers between them.
    span = max(float(np.ptp(raw)), _LEAST_SPAN * max(1.0, float(np.abs(raw).max())))
    runs = [np.concatenate(list(run_onnx(content, _batches(faces, size)))) for size in _BATCHES]
    largest = np.max([np.abs(found - wanted).max(axis=0) for found in runs], axis=0)
    return {
        "images": len(faces),
        "largest_raw_difference": float(largest[0]) / span,
        "largest_quality_difference": float(largest[1]),
        "spearman": rank_correlation(runs[0][:, 0], raw),
    }


def _batches(faces: Faces, size: int) -> list[Faces]:
    return [faces[start : start + size] for start in range(0, len(faces), size)]


def _faces(config: SourceConfig, number: int) -> Faces:
    """Return the first faces of a source that can be read."""
    source = open_source(config)
    items = list(islice(source.items(Listing()), number))
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(read_faces(source, items, threads))
    faces = [face.pixels for face in read if not isinstance(face, SddError)]
    if len(faces) < _LEAST_FACES:
        errors = [str(face) for face in read if isinstance(face, SddError)]
        raise InputError(
            f"source: expected at least {_LEAST_FACES} images to compare with, could read"
            f" {len(faces)} of {len(items)}{'; the first: ' + errors[0] if errors else ''}"
        )
    return np.stack(faces)


def _evaluated(config: ExportConfig, model: QualityModel) -> dict[str, Any] | None:
    """Return the results of the evaluation, of the model's rows alone."""
    if config.evaluation is None:
        return None
    dataset = open_dataset(config.evaluation, ["evaluate"])
    evaluated_method(dataset, config.method, model)
    results = dict(dataset.manifest["results"])
    rows = [row for row in results["summary"] if row["method"] == config.method]
    return {**results, "summary": rows}


def in_words(output: Location) -> str:
    """Return what a complete export says of itself."""
    found = read_json(output / MANIFEST)["results"]
    return (
        f"export: {found['precision']}, {found['bytes']:,} bytes; on {found['images']:,} images raw"
        f" qualities differ by at most {found['largest_raw_difference']:.2g} of their span,"
        f" qualities by {found['largest_quality_difference']:.2g} of 100; Spearman"
        f" {found['spearman']:.6f} -> {(output / MODEL).uri}"
    )
