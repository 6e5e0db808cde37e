"""The model card: what a quality model was made from, what it is worth, and its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import sdd_ray
from sdd_ray.core.calibration import integer_quality
from sdd_ray.store.model_folder import QualityModel


def model_card(
    model: QualityModel, export: Mapping[str, Any], evaluated: Mapping[str, Any] | None
) -> str:
    """Return the card as Markdown.

    Args:
        model: The model.
        export: How far the exported file is from it, see `sdd_ray.engine.exporting.compare`.
        evaluated: Results of an evaluation, with the rows of this model alone; None if there is
            none.
    """
    sections = [
        _what(model),
        _use(export),
        _thresholds(model),
        _made(model),
        _worth(evaluated),
        _LIMITS,
    ]
    return "\n".join(["# Face image quality model", "", *("\n".join(s) + "\n" for s in sections)])


def _what(model: QualityModel) -> list[str]:
    architecture = model.architecture.to_dict()
    return [
        "A network that predicts from one aligned face crop how well a recogniser will match it. It"
        " was trained on pseudo-labels: the Wasserstein distance between an image's similarities"
        " with the same person and with other people (SDD-FIQA, Ou et al., CVPR 2021), computed by"
        f" sdd_ray {sdd_ray.__version__}.",
        "",
        f"- Weights: SHA-256 `{model.digest}`",
        f"- Architecture: `{architecture}`",
        f"- Preprocessing (inside the file): `{model.preprocessing.to_dict()}`",
    ]


def _use(export: Mapping[str, Any]) -> list[str]:
    return [
        "## Input and output",
        "",
        "`images`: (N, 112, 112, 3) uint8, RGB, faces aligned to the ArcFace template; any N."
        " `raw`: (N,) float32, in units of the label. `quality`: (N,) float32, 0 to 100, larger is"
        " better; as an integer `floor(quality + 0.5)`. Crops of another alignment give other"
        " qualities.",
        "",
        f"Precision {export['precision']}, {export['bytes']:,} bytes. On {export['images']:,}"
        f" images, at several batch sizes, raw qualities differ from those of the model by at most"
        f" {export['largest_raw_difference']:.2g} of their span, qualities by"
        f" {export['largest_quality_difference']:.2g} of 100; rank correlation"
        f" {export['spearman']:.6f}.",
    ]


def _thresholds(model: QualityModel) -> list[str]:
    note = model.calibrated
    text = (
        f"0 to 100 is a {model.calibration.to_dict()['kind']} map, version"
        f" {note.get('version', 1)}, fitted on {note.get('images', 0):,} images"
        f" ({note.get('of', 'of an older version')})."
    )
    rows = [
        [
            name,
            f"{found.raw:.5g}",
            str(int(integer_quality(model.calibration.apply(np.array(found.raw))))),
            _share(found.record.get("discarded")),
            _share(found.record.get("fnmr")),
        ]
        for name, found in sorted(model.thresholds.items())
    ]
    heads = ["threshold", "raw", "quality", "discards", "FNMR left"]
    return ["## Quality and thresholds", "", text, *(_table(heads, rows) if rows else [])]


_FIGURES = ("loss", "mae", "spearman", "kendall", "pauc")
_PARTS = {"train": "to train", "validation": "to choose the epoch", "holdout": "held out"}


def _made(model: QualityModel) -> list[str]:
    record = model.record
    lines = ["## Training", ""]
    people = record.get("identities", {})
    parts = [f"{people[part]:,} {words}" for part, words in _PARTS.items() if part in people]
    if parts:
        lines.append(f"- people: {', '.join(parts)}; none is in two parts")
    names = {
        "train_images": "images to train",
        "validation_images": "images to validate",
        "epochs": "epochs",
        "best_epoch": "best epoch",
    }
    lines += [f"- {text}: {record[name]:,}" for name, text in names.items() if name in record]
    figures = record.get("validation", {})
    shown = [f"{name} {figures[name]:.4g}" for name in _FIGURES if figures.get(name) is not None]
    if shown:
        lines.append(f"- on the validation images: {', '.join(shown)}")
    return lines


def _worth(evaluated: Mapping[str, Any] | None) -> list[str]:
    lines = ["## What it is worth", ""]
    if evaluated is None:
        return [*lines, "Not evaluated when this card was written; see `sdd_ray.evaluate`."]
    fractions = evaluated["discard_fractions"]
    area = f"normalised_pauc_{evaluated['discard_limit']:g}"
    lines.append(
        f"{evaluated['images']:,} images of {evaluated['identities']:,} people,"
        f" {evaluated['mated_comparisons']:,} mated and {evaluated['nonmated_comparisons']:,}"
        f" nonmated comparisons; recogniser: {evaluated['recogniser']}. FNMR after"
        f" {evaluated.get('discarded', 'images')} are discarded and the threshold is solved again;"
        " pAUC: 1 is no use, lower is better (95 % of the draws of people)."
    )
    rows = [
        [
            row["recogniser"],
            f"{row['fmr']:g}",
            *(_share(row[f"evrc_{fraction:g}"]) for fraction in fractions),
            _number(row[area]) + _ends(row, area),
        ]
        for row in evaluated["summary"]
    ]
    heads = ["recogniser", "FMR", *(f"{100 * f:.4g} %" for f in fractions)]
    lines += _table([*heads, f"pAUC@{evaluated['discard_limit']:g}"], rows)
    if evaluated.get("caution"):
        lines += ["", evaluated["caution"]]
    return lines


def _ends(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]


_LIMITS = [
    "## Limits",
    "",
    "- A quality says how well one recogniser matches an image. It is no measure of a person, and"
    " may differ between groups of people: evaluate it on yours (`groups` of sdd_ray.evaluate).",
    "- Qualities and thresholds hold for images like those they were found on. Fit them to yours"
    " (`sdd_ray.calibrate`) before a threshold decides anything.",
    "- Wrong names in the training images make wrong labels.",
]
