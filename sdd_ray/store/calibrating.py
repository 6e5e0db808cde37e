"""A model's map to 0-100 and its thresholds, fitted to a user's own images."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np

from sdd_ray.columns import RAW_QUALITY
from sdd_ray.core.calibration import Calibration, QuantileMap, SigmoidMap, integer_quality
from sdd_ray.core.thresholds import Threshold, discard_thresholds
from sdd_ray.errors import InputError
from sdd_ray.settings import CalibrateConfig
from sdd_ray.store.dataset import Dataset, open_dataset, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import (
    DESCRIPTION_NAME,
    SPLITS_NAME,
    WEIGHTS_NAME,
    QualityModel,
    save_model,
)
from sdd_ray.store.run import OutputRun, PartRecord, peak_memory_mib, versions

_ADVICE = ["method", "fmr", "aim", "asked", "threshold", "low", "high", "discarded", "fnmr"]


def calibrated(config: CalibrateConfig, model: QualityModel) -> QualityModel:
    """Return the model with another map or other thresholds.

    Thresholds of the model stay, but for those that get the same name.

    Raises:
        InputError: Qualities or evaluation are of another model, or no image has a quality.
    """
    thresholds = dict(model.thresholds)
    if config.evaluation is not None:
        thresholds |= _advised(config, model)
    if config.qualities is None:
        return replace(model, thresholds=thresholds)
    dataset = open_dataset(config.qualities, ["score"])
    _check_model(dataset, model)
    raw = np.asarray(dataset.read([RAW_QUALITY])[RAW_QUALITY], np.float64)
    known = raw[~np.isnan(raw)]
    if not known.size:
        raise InputError(f"{config.qualities}: none of {len(raw)} images has a quality")
    calibration: Calibration = (
        QuantileMap.fit(known) if config.map == "quantile" else SigmoidMap.fit(known)
    )
    note = {
        "version": int(model.calibrated.get("version", 1)) + 1,
        "images": int(known.size),
        "of": config.qualities,
        "qualities_digest": dataset.digest,
        "sdd_ray": versions()["sdd_ray"],
    }
    found = discard_thresholds(raw, config.discard)
    for share, (threshold, discarded) in zip(config.discard, found, strict=True):
        record = {"aim": "discard", "asked": share, "discarded": discarded}
        on = {"images": len(raw), "found_on": dataset.digest}
        thresholds[f"discard_{share:g}"] = Threshold(threshold, record | on)
    return replace(model, calibration=calibration, calibrated=note, thresholds=thresholds)


def evaluated_method(dataset: Dataset, name: str, model: QualityModel) -> dict[str, Any]:
    """Return the configuration of a method of an evaluation, which is this model.

    Raises:
        InputError: The evaluation has no such method, or it is of other weights.
    """
    uri = dataset.location.uri
    methods = {m["name"]: m for m in dataset.manifest["config"]["methods"]}
    if name not in methods:
        raise InputError(f"{uri}: no method {name}; it has {', '.join(methods)}")
    found: dict[str, Any] = methods[name]
    _check_model(open_dataset(found["path"], ["score"]), model)
    return found


def _advised(config: CalibrateConfig, model: QualityModel) -> dict[str, Threshold]:
    """Return the thresholds that an evaluation of the model advises."""
    uri = config.evaluation or ""
    dataset = open_dataset(uri, ["evaluate"])
    method = evaluated_method(dataset, config.method, model)
    if method["column"] != RAW_QUALITY or method["sign"] != 1:
        raise InputError(
            f"{uri}: expected the method {config.method} to be the model's raw qualities, got the"
            f" column {method['column']}; evaluate it with column: {RAW_QUALITY}"
        )
    table = read_parquet(dataset.location / "advice.parquet", _ADVICE)
    found: dict[str, Threshold] = {}
    for row in table.to_pylist():
        if row["method"] != config.method or not math.isfinite(row["threshold"]):
            continue  # an aim that cannot be reached has no threshold
        name = f"{row['aim']}_{row['asked']:g}"
        if row["aim"] == "fnmr":
            name += f"_at_fmr_{row['fmr']:g}"
        kept = {n: v for n, v in row.items() if n not in ("method", "threshold")}
        record = {n: _plain(value) for n, value in kept.items()} | {"found_on": dataset.digest}
        found.setdefault(name, Threshold(row["threshold"], record))
    return found


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_model(qualities: Dataset, model: QualityModel) -> None:
    """Check that qualities are of these weights: others have other units."""
    found = qualities.manifest["results"].get("weights_sha256")
    if found != model.digest:
        raise InputError(
            f"{qualities.location.uri}: expected qualities of the model with the weights"
            f" {model.digest[:12]}..., got those of {str(found)[:12]}...; score the images with"
            " this model first"
        )


def publish(model: QualityModel, old: Location, output: OutputRun) -> None:
    """Write a model folder like the old one.

    Raises:
        OutputError: The folder cannot be written.
    """
    (output.output / DESCRIPTION_NAME).remove()  # of a run that was interrupted right here
    if (old / SPLITS_NAME).exists():
        (output.output / SPLITS_NAME).write_bytes((old / SPLITS_NAME).read_bytes())
    digest = save_model(output.output, model)
    description = (output.output / DESCRIPTION_NAME).read_bytes()
    images = int(model.calibrated.get("images", 0))
    # Both files make the digest of the folder: the same weights with another map are another model.
    digests = {WEIGHTS_NAME: digest, DESCRIPTION_NAME: hashlib.sha256(description).hexdigest()}
    records = [
        PartRecord(stem, images * first, images * first, found, peak_memory_mib(), [], f".{suffix}")
        for first, (name, found) in zip((1, 0), digests.items(), strict=True)
        for stem, _, suffix in [name.rpartition(".")]
    ]
    output.complete(records, {"thresholds": sorted(model.thresholds)})


def thresholds_in_words(model: QualityModel) -> str:
    """Return a table of the thresholds of a model."""
    note = model.calibrated
    lines = [
        f"map to 0-100: {model.calibration.to_dict()['kind']}, version {note.get('version', 1)},"
        f" fitted on {note.get('images', 0):,} images",
        "",
        f"{'threshold':<28}{'raw':>10}{'quality':>9}{'discards':>10}{'FNMR left':>11}",
    ]
    for name, found in sorted(model.thresholds.items()):
        quality = int(integer_quality(model.calibration.apply(np.array(found.raw))))
        shares = [found.record.get("discarded"), found.record.get("fnmr")]
        shown = ["-" if share is None else f"{share:.2%}" for share in shares]
        lines.append(f"{name:<28}{found.raw:>10.4g}{quality:>9}{shown[0]:>10}{shown[1]:>11}")
    return "\n".join(lines)
