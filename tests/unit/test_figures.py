"""Figures: what is drawn is what was given, said in words as well, and the same every time."""

import dataclasses
import io
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr, wasserstein_distance

from sdd_ray.report.drawing import COLOURS
from sdd_ray.report.figures import (
    ImageSimilarities,
    face_strip,
    label_histogram,
    scatter_severity,
    similarity_distributions,
)


def _texts(figure):
    """The words in an SVG, which must be well-formed XML to be read at all."""
    root = ET.fromstring(figure.content)  # noqa: S314 (our own markup)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]


def _images():
    rng = np.random.default_rng(0)
    face = rng.integers(0, 255, (16, 12, 3), dtype=np.uint8)
    return [
        ImageSimilarities("Good", rng.normal(0.7, 0.1, 90), rng.normal(0, 0.1, 400), face, 93.4),
        ImageSimilarities("Poor", rng.normal(0.2, 0.1, 80), rng.normal(0.1, 0.1, 300), face, 7.6),
    ]


def _severities():
    rng = np.random.default_rng(1)
    severity = rng.random(60)
    return severity, 90 - 70 * severity + rng.normal(0, 5, 60), ["blur", "noise", "pose"] * 20


def test_histogram_tells_counts_median_and_missing_labels():
    labels = np.r_[np.linspace(0, 100, 101), np.nan, np.nan]
    figure = label_histogram(labels, "A caption")
    assert "101 pseudo-labels between 0 and 100, median 50" in figure.alt
    assert "lie between 5 and 95; 2 images without a label" in figure.alt
    assert "median 50" in _texts(figure)
    assert figure.caption == "A caption"
    assert "without a label" not in label_histogram(labels[:101]).alt


def test_histogram_bars_have_the_height_of_their_counts():
    # 3 labels in the first bin, 1 in the last: two bars with heights 3 : 1.
    svg = label_histogram(np.array([1.0, 1.0, 2.0, 99.0])).content
    bars = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: var\(--blue', svg)
    heights = []
    for bar in bars:
        ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", bar)]
        heights.append(max(ys) - min(ys))
    heights = [height for height in heights if height > 1e-6]
    assert len(heights) == 2
    assert heights[0] / heights[1] == pytest.approx(3, rel=1e-4)


def test_similarity_panels_state_the_wasserstein_distance_and_the_label():
    images = _images()
    figures = similarity_distributions(images)
    for image, figure in zip(images, figures, strict=True):
        distance = wasserstein_distance(image.mated, image.nonmated)
        words = _texts(figure)
        assert f"{image.name}: distance {distance:.2f}" in words
        assert f"label {image.label:.0f}" in words
        assert f"mated ({image.mated.size})" in words
        assert f"distance is {distance:.2f}, the pseudo-label {image.label:.0f}" in figure.alt
        assert "data:image/png;base64," in figure.content  # the face


def test_similarity_panels_share_their_scales():
    good, poor = ([w for w in _texts(f) if re.match(r"^[−\d.]+$", w)] for f in
                  similarity_distributions(_images()))  # fmt: skip
    assert good == poor


def test_scatter_has_a_panel_per_kind_with_its_rank_correlation():
    severity, values, kinds = _severities()
    figure = scatter_severity(severity, values, kinds, "pseudo-label")
    words = _texts(figure)
    for kind in ("blur", "noise", "pose"):
        chosen = np.array(kinds) == kind
        expected = f"{spearmanr(severity[chosen], values[chosen]).statistic:+.2f}"
        assert kind in words
        assert expected.replace("-", "−") in words
        assert f"{kind} {expected}".replace("-", "−") in figure.alt
    assert "Pseudo-label against known severity" in words


def test_scatter_leaves_out_nan_and_has_a_dash_where_no_correlation_exists():
    severity = np.array([0.1, 0.2, 0.3, 0.4])
    figure = scatter_severity(
        severity, np.array([1.0, 1.0, 5.0, np.nan]), ["same", "same", "one", "one"], "quality"
    )
    assert "3 images" in figure.alt
    assert "one –; same –" in figure.alt


def test_many_points_are_drawn_as_pixels_and_the_figure_stays_small():
    rng = np.random.default_rng(2)
    many = scatter_severity(rng.random(20_000), rng.random(20_000), ["blur"] * 20_000, "quality")
    assert len(many.content) < 600_000  # as vectors, some 100 bytes each: 2 MB
    assert "<image" in many.content


def test_face_strip_goes_from_worst_to_best_and_puts_a_failure_first():
    faces = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (10, 20, 30, 40)]
    strip = face_strip(faces, np.array([70.2, 5.0, 99.0, np.nan]), ["a", "b", "c", "d"], "words")
    assert [tile.caption for tile in strip.tiles] == ["d", "b", "a", "c"]
    assert [tile.value for tile in strip.tiles] == ["–", "5", "70", "99"]
    shades = [int(np.asarray(Image.open(io.BytesIO(tile.png)))[0, 0, 0]) for tile in strip.tiles]
    assert shades == [40, 20, 10, 30]


def test_figures_are_the_same_every_time_and_whatever_the_callers_settings():
    labels = np.linspace(3, 97, 50)
    severity = _severities()

    def draw():
        return [
            label_histogram(labels).content,
            scatter_severity(*severity, "quality").content,
            *(figure.content for figure in similarity_distributions(_images())),
        ]

    plain = draw()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert draw() == plain
        assert mpl.rcParams["font.size"] == 30


def test_pyplot_and_its_global_state_stay_out():
    check = "import sys, sdd_ray.report.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_svg_has_no_date_no_global_style_and_themable_colours():
    svg = label_histogram(np.linspace(0, 100, 20)).content
    assert svg.startswith("<svg ")
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert "#000000" not in svg
    for light, _ in (COLOURS["blue"], COLOURS["ink"], COLOURS["muted"]):
        assert svg.count(light) == svg.count(f", {light})") > 0


def test_names_with_dollar_signs_and_other_scripts_are_drawn_as_they_are():
    severity, values, _ = _severities()
    figure = scatter_severity(severity, values, ["$x_1$ <b>", "模糊", "a & b"] * 20, "quality")
    assert {"$x_1$ <b>", "模糊", "a & b"} <= set(_texts(figure))


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="at least one pseudo-label that is a number, got 3 NaN"):
        label_histogram(np.full(3, np.nan))
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        face_strip([np.zeros((2, 2, 3), np.uint8)], np.zeros(2), ["x"])
    with pytest.raises(ValueError, match=r"three of equal length, got \(2,\), \(3,\), 2"):
        scatter_severity(np.zeros(2), np.zeros(3), ["a", "b"], "quality")
    with pytest.raises(ValueError, match="value that is a number, got 1 without"):
        scatter_severity(np.zeros(1), np.array([np.nan]), ["a"], "quality")
    empty = ImageSimilarities("x", np.zeros(0), np.ones(1), np.zeros((2, 2, 3), np.uint8), 1.0)
    for images in ([], [empty]):
        with pytest.raises(ValueError, match="at least one mated and one nonmated"):
            similarity_distributions(images)


def _bars(svg):
    """Return (left edge, height) of the bars of a histogram that have a height."""
    bars = []
    for path in re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: var\(--blue', svg):
        points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=np.float64)
        if np.ptp(points[:, 1]) > 1e-6:
            bars.append((points[:, 0].min(), np.ptp(points[:, 1])))
    return bars


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.25, 0.5, 0.75, 1.25], "between 0.25 and 1.25, median 0.62"),  # distances
        ([-30.0, 20.0, 40.0, 140.0], "between -30 and 140, median 30"),
        ([0.5, 0.5, 0.5], "between 0.50 and 0.50, median 0.50"),
    ],
)
def test_histogram_of_labels_that_are_not_scaled_shows_all_of_them(labels, words):
    figure = label_histogram(np.array(labels))
    assert words in figure.alt
    bars = _bars(figure.content)
    assert len(bars) == len(set(labels))
    # The range is that of the labels: the picture is not squeezed to its left end.
    if len(bars) > 1:
        assert max(x for x, _ in bars) - min(x for x, _ in bars) > 250


def test_histogram_of_scaled_labels_goes_from_0_to_100():
    widths = []
    for labels in ([21.0, 61.0], [1.0, 99.0]):  # bins 8 and 24, 0 and 39 of forty
        (left, _), (right, _) = _bars(label_histogram(np.array(labels)).content)
        widths.append(right - left)
    assert widths[0] / widths[1] == pytest.approx(16 / 39, abs=0.001)


def test_small_values_are_told_apart_below_faces_and_beside_them():
    faces = [np.zeros((8, 8, 3), np.uint8)] * 2
    strip = face_strip(faces, np.array([0.31, -0.9]), ["a", "b"])
    assert [tile.value for tile in strip.tiles] == ["-0.90", "0.31"]
    images = [dataclasses.replace(image, label=image.label / 60) for image in _images()]
    assert "label 1.56" in _texts(similarity_distributions(images)[0])
