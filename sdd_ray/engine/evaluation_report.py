"""Gather what the report of an evaluation shows: curves, tables, distributions, faces."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from sdd_ray.columns import IMAGE_ID, PSEUDO_LABEL
from sdd_ray.core.assessment import EDC_DISCARD_FRACTIONS, Assessment
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS
from sdd_ray.core.statistics import rank_correlation
from sdd_ray.engine.assessing import MethodResult, protocol_of
from sdd_ray.engine.differences import ends_on, figures
from sdd_ray.engine.evaluating import ComparedSet
from sdd_ray.engine.evaluation_sections import (
    advice_section,
    alike_section,
    audit_section,
    better_section,
    ends_in_words,
    groups_section,
    percent,
    recognisers_section,
    seeds_in_words,
)
from sdd_ray.formats.reading import Album
from sdd_ray.formats.source import open_source
from sdd_ray.report.curves import Curve, error_curves
from sdd_ray.report.drawing import Figure
from sdd_ray.report.figures import (
    ImageSimilarities,
    face_strip,
    label_histogram,
    scatter_severity,
    similarity_distributions,
    similarity_histograms,
)
from sdd_ray.report.page import Cell, Highlight, Section, Table, render_page
from sdd_ray.settings import EvaluateConfig
from sdd_ray.store.dataset import read_any

REPORT = "report.html"
_FACES = 24
_APART, _LEAST_RANKED = 6, 24
"""Faces shown of each kind of disagreement, and images that it takes."""
_TRIES = 20
"""Images tried before the report does without a face."""
_FAILURES = {
    "discarded_first": "an image that could not be assessed leaves first",
    "left_out": "images that some method could not assess are left out for all",
}
_POOR, _GOOD = 0.03, 0.97
"""Ranks of the two images whose similarities are shown."""


def report_sections(
    config: EvaluateConfig,
    compared: ComparedSet,
    methods: list[MethodResult],
    tables: Mapping[str, pa.Table],
) -> list[Section]:
    """Return what report.html shows.

    Args:
        config: The evaluation.
        compared: Its comparisons.
        methods: What came out.
        tables: By the names of their files.

    Raises:
        InputError: The labels, faces or severities cannot be read.
    """
    album = _album(config, compared)
    sections = [_worth(config, methods)]
    sections.append(_similarities_section(compared, methods[0]))
    sections += better_section(config, tables["differences"])
    sections += [_curves(config, methods, number) for number in range(len(config.fmr))]
    sections += recognisers_section(config, tables["summary"])
    sections += advice_section(config, tables["advice"])
    sections += alike_section(tables["correlations"])
    if "groups" in tables:
        sections.append(groups_section(config, tables["groups"]))
    if config.report.labels is not None:
        sections += _labels(config, compared, album)
    if album is not None:
        sections.append(_faces(album, compared, methods[0]))
        sections += _disagreements(album, methods[:-1])
    if config.report.audit is not None:
        sections.append(audit_section(config.report.audit))
    if config.report.severity is not None:
        sections.append(_severity(config.report.severity, compared, methods[0]))
    return sections


def report_files(sections: Sequence[Section], results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return report.html, and its figures as files of their own.

    Args:
        sections: Of the page.
        results: Facts for its last table; lists and tables are left out.
    """
    plain = {k: v for k, v in results.items() if isinstance(v, (int, float, str))}
    facts = {name.replace("_", " "): value for name, value in plain.items()}
    page = render_page("What a quality score is worth", sections, facts)
    files = {REPORT: page.encode()}
    for section in sections:
        for figure in section.figures:
            if isinstance(figure, Figure) and isinstance(figure.content, str):
                words = re.sub(r"[^a-z0-9.]+", "-", section.heading.lower()).strip("-")
                name = f"figures/{len(files):02d}-{words}.svg"
                files[name] = ('<?xml version="1.0" encoding="utf-8"?>\n' + figure.content).encode()
    return files


def caution(config: EvaluateConfig) -> str:
    """Return what a reader must know of the compared images, or nothing."""
    models = [method.name for method in config.methods if method.kind == "model"]
    made = config.comparisons
    if not models or (made.splits is not None and made.part == "holdout"):
        return ""
    given = f"comparisons.part={made.part}" if made.splits else "comparisons.splits is not given"
    return (
        f"{given}: {', '.join(models)} may have been trained on the"
        " compared images, and then looks better here than on others."
    )


def _worth(config: EvaluateConfig, methods: list[MethodResult]) -> Section:
    first, point = methods[0], methods[0].assessments[0]
    fraction = percent(config.discard_fractions[-1])
    before, after = point.evrc[0], point.table_evrc[-1]
    area = point.areas[config.discard_limit].normalised.value
    highlights = (
        Highlight(_shown(before, ".1%"), f"false non-matches at FMR {point.fmr:g}, all images"),
        Highlight(_shown(after, ".1%"), f"without the worst {fraction} by {first.name}"),
        Highlight(_shown(area, ".2f"), "normalised pAUC; 1 would be no use"),
    )
    text = (
        "A quality is worth what it saves: discard the images of lowest quality, and the recogniser"
        " should fail less often on the others. FNMR is the share of comparisons of one person that"
        " are missed, at a threshold that lets through the stated share (FMR) of comparisons of two"
        f" people.\n\nEVRC: {config.discarded} are discarded, and the threshold is solved again on"
        " the rest (the paper). EDC: mated comparisons are discarded by the"
        f" {config.pair_quality} of the qualities of the two images, at a fixed threshold (ISO/IEC"
        " 29794-1). Images of equal quality leave together; "
        f"{_FAILURES[config.failures]}.{seeds_in_words(config)}\n\n"
    )
    return Section(
        "What the quality is worth",
        text + caution(config),
        highlights,
        tables=_tables(config, methods),
    )


def _shown(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


def _tables(config: EvaluateConfig, methods: list[MethodResult]) -> list[Table]:
    heads = [percent(fraction) for fraction in config.discard_fractions]
    tables = []
    for number, fmr in enumerate(config.fmr):
        found = [(m, m.assessments[number]) for m in methods]
        achieved = found[0][1].point.achieved_fmr
        caption = f"FMR {fmr:g} (achieved {achieved:.3g})"
        areas = [f"pAUC@{config.discard_limit:g}", "95 %", "AOC", "failed", "missing"]
        rows: list[list[Cell]] = [
            [
                m.name,
                *(100 * a.table_evrc).tolist(),
                a.areas[config.discard_limit].normalised.value,
                _interval(config, m, number),
                a.aoc.value,
                m.read.failed,
                m.read.missing,
            ]
            for m, a in found
        ]
        title = f"EVRC: FNMR in %, {config.discarded} discarded. {caption}"
        tables.append(Table(["method", *heads, *areas], rows, title, _undefined(config, found)))
        rows = [[m.name, *(100 * a.table_edc).tolist()] for m, a in found]
        tables.append(
            Table(["method", *heads], rows, f"EDC: FNMR in %, comparisons discarded. {caption}")
        )
    return tables


def _interval(config: EvaluateConfig, method: MethodResult, number: int) -> str | None:
    """Return the ends of the interval of the area that tables show."""
    wanted = f"normalised_pauc_{config.discard_limit:g}"
    for figure in figures(method, number, protocol_of(config)):
        if figure.name == wanted:
            within = figure.interval
            return ends_in_words({"low": within.low, "high": within.high}, ".3f")
    return None


def _undefined(config: EvaluateConfig, found: list[tuple[MethodResult, Assessment]]) -> str:
    """Return in words why areas of a table are undefined, or nothing if none is."""
    methods: dict[tuple[str, str], list[str]] = {}
    for method, a in found:
        for name, area in (
            ("pAUC", a.areas[config.discard_limit].normalised),
            ("AOC", a.aoc),
        ):
            if area.reason:
                methods.setdefault((name, area.reason), []).append(method.name)
    return " ".join(
        f"No {name} of {', '.join(names)}: {reason}." for (name, reason), names in methods.items()
    )


def _curves(config: EvaluateConfig, methods: list[MethodResult], number: int) -> Section:
    fmr = methods[0].assessments[number].fmr
    drawn = []
    for curve, title, grid, discarded in (
        ("evrc", f"EVRC at FMR {fmr:g}", EVRC_DISCARD_FRACTIONS, config.discarded),
        ("edc", f"EDC, threshold fixed at FMR {fmr:g}", EDC_DISCARD_FRACTIONS, "comparisons"),
    ):
        curves = [
            Curve(
                m.name,
                m.kind,
                grid,
                getattr(m.assessments[number], curve),
                *(ends_on(grid, curve, m, number, protocol_of(config)) if m.draws else ()),
            )
            for m in methods
        ]
        drawn.append(error_curves(curves, title, stepped=curve == "edc", discarded=discarded))
    text = "Bands hold 95 % of the draws of people." if config.bootstrap.draws else ""
    return Section(f"Curves at FMR {fmr:g}", text, figures=drawn)


def _labels(config: EvaluateConfig, compared: ComparedSet, album: Album | None) -> list[Section]:
    table = read_any(config.report.labels or "", [IMAGE_ID, PSEUDO_LABEL])
    labels = _floats(table[PSEUDO_LABEL])
    if np.isnan(labels).all():
        return [Section("The labels", "No image has a label.")]
    sections = [
        Section(
            "The labels",
            "The pseudo-label of an image is the Wasserstein distance between its similarities with"
            " images of the same person (mated) and of other people (nonmated), scaled.",
            figures=[label_histogram(labels, f"All {len(labels):,} labelled images.")],
        )
    ]
    if album is None or compared.unit is None:
        return sections
    own = _joined(compared, table, labels)
    images = [
        _similarities(name, compared, compared.unit, own, album, rank)
        for name, rank in (("good", _GOOD), ("poor", _POOR))
    ]
    shown = [image for image in images if image is not None]
    if shown:
        text = "Similarities of two images with all others of the evaluation."
        sections.append(
            Section("A good and a poor image", text, figures=similarity_distributions(shown))
        )
    return sections


def _similarities(
    name: str,
    compared: ComparedSet,
    unit: NDArray[np.float32],
    labels: NDArray[np.float64],
    album: Album,
    rank: float,
) -> ImageSimilarities | None:
    """Return the similarities of the image at a rank of the labels, or None if it has none."""
    counts = np.bincount(compared.codes)[compared.codes]
    usable = np.flatnonzero(~np.isnan(labels) & (counts > 2) & (counts < len(counts)))
    if len(usable) == 0:
        return None
    order = usable[np.argsort(labels[usable], kind="stable")]
    place = int(rank * (len(order) - 1))
    face: NDArray[np.uint8] | None = None
    row = -1
    for row in order[np.argsort(np.abs(np.arange(len(order)) - place), kind="stable")][:_TRIES]:
        face = album.faces([int(row)])[0]
        if face is not None:
            break
    if face is None:
        return None
    similarities = unit @ unit[row]
    same = compared.codes == compared.codes[row]
    others = same.copy()
    others[row] = False
    return ImageSimilarities(name, similarities[others], similarities[~same], face, labels[row])


def _album(config: EvaluateConfig, compared: ComparedSet) -> Album | None:
    if config.report.faces is None or compared.members is not None:
        return None
    return Album(open_source(config.report.faces), pa.chunked_array([compared.image_ids]))


def _faces(album: Album, compared: ComparedSet, method: MethodResult) -> Section:
    known = np.flatnonzero(~np.isnan(method.qualities))
    order = known[np.argsort(method.qualities[known], kind="stable")]
    places = np.unique(np.linspace(0, len(order) - 1, min(_FACES, len(order))).astype(int))
    faces, values, captions = [], [], []
    for row in order[places]:
        face = album.faces([int(row)])[0]
        if face is None:
            continue  # the strip is a sample: another face is as good
        faces.append(face)
        values.append(method.qualities[row])
        captions.append(compared.image_ids[row].rpartition("/")[2])
    heading = "Faces from worst to best"
    if not faces:
        return Section(heading, f"None of {len(places)} images tried could be read.")
    strip = face_strip(faces, np.array(values), captions, f"Evenly spaced ranks of {method.name}.")
    return Section(heading, figures=[strip])


def _similarities_section(compared: ComparedSet, method: MethodResult) -> Section:
    """Return how the similarities lie, with the thresholds of each false match rate."""
    points = [found.point for found in method.assessments]
    figure = similarity_histograms(
        compared.mated.similarities,
        compared.nonmated.similarities,
        [(f"FMR {point.asked_fmr:g}", point.threshold) for point in points],
    )
    text = "Mated comparisons below a threshold are missed; nonmated ones above it are let through."
    return Section("The comparisons", text, figures=[figure])


def _disagreements(album: Album, methods: Sequence[MethodResult]) -> list[Section]:
    """Return the faces whose ranks by two methods differ most; the first method and each other."""
    first, figures = methods[0], []
    for other in methods[1:]:
        known = np.flatnonzero(~np.isnan(first.qualities) & ~np.isnan(other.qualities))
        if len(known) < _LEAST_RANKED:
            continue
        ranks = [stats.rankdata(method.qualities[known]) / len(known) for method in (first, other)]
        apart = ranks[0] - ranks[1]
        order = np.argsort(apart, kind="stable")
        chosen = np.concatenate([order[:_APART], order[-_APART:]])
        tiles = []
        for place in chosen:
            face = album.faces([int(known[place])])[0]
            if face is not None:
                both = f"{ranks[0][place]:.0%} and {ranks[1][place]:.0%}"
                tiles.append((face, apart[place], both))
        if tiles:
            faces, values, words = zip(*tiles, strict=True)
            caption = (
                f"Difference of the ranks by {first.name} and by {other.name}; below, both ranks"
                " (0 % is worst)."
            )
            figures.append(face_strip(faces, np.array(values), words, caption))
    if not figures:
        return []
    text = "Faces that one method ranks high and another one low: look which of them is right."
    return [Section("Where methods disagree", text, figures=figures)]


def _severity(path: str, compared: ComparedSet, method: MethodResult) -> Section:
    table = read_any(path, [IMAGE_ID, "kind", "severity"])
    place = pc.index_in(pa.array(compared.image_ids), table[IMAGE_ID].combine_chunks())
    found = table.take(place)
    severity = _floats(found["severity"])
    kinds = np.array(found["kind"].to_pylist(), np.object_)
    known = ~np.isnan(severity) & ~np.isnan(method.qualities)
    heading = "Against the known severity"
    if not known.any():
        return Section(heading, f"No compared image has a severity and a value of {method.name}.")
    correlation = rank_correlation(severity[known], method.qualities[known])
    figure = scatter_severity(
        severity[known], method.qualities[known], kinds[known].tolist(), method.name
    )
    caption = f"Over all kinds: Spearman {_shown(correlation, '.2f')}."
    return Section(heading, figures=[replace(figure, caption=caption)])


def _joined(
    compared: ComparedSet, table: pa.Table, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the value of each compared image, NaN where the table has none."""
    place = pc.index_in(pa.array(compared.image_ids), table[IMAGE_ID].combine_chunks())
    rows = place.to_numpy(zero_copy_only=False).astype(np.float64)
    found = ~np.isnan(rows)
    joined = np.full(len(rows), np.nan)
    joined[found] = values[rows[found].astype(np.int64)]
    return joined


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), np.float64)
