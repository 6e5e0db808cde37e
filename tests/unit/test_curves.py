"""The picture of error versus discard curves: names, values in words, steps, crowded ends."""

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from sdd_ray.report.curves import Curve, _apart, error_curves

_GRID = np.arange(20) / 20


def _texts(figure):
    root = ET.fromstring(figure.content)  # noqa: S314 (our own markup)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]


def _curves():
    return [
        Curve("model", "model", _GRID, 0.2 * (1 - _GRID)),
        Curve("pseudo-label", "label", _GRID, 0.2 * (1 - _GRID) ** 2),
        Curve("random", "random", _GRID, np.full(20, 0.2)),
    ]


@pytest.mark.parametrize("stepped", [True, False])
def test_every_curve_is_named_and_told_in_words(stepped):
    figure = error_curves(_curves(), "FNM-EDC at FMR 0.001", stepped=stepped)
    words = _texts(figure)
    assert {"model", "pseudo-label", "random", "FNM-EDC at FMR 0.001"} <= set(words)
    assert {"FNMR (%)", "comparisons discarded (%)"} <= set(words)
    # 0.2 * 0.7 and 0.2 * 0.49 at 30 %
    assert "model from 20.00 % to 14.00 %" in figure.alt
    assert "pseudo-label from 20.00 % to 9.80 %" in figure.alt
    assert "random from 20.00 % to 20.00 %" in figure.alt


def test_kinds_differ_in_dashes_or_marker_and_not_in_colour_alone():
    kinds = ("model", "label", "severity", "norm", "random", "oracle")
    curves = [Curve(kind, kind, _GRID, 0.1 + 0.01 * n * _GRID) for n, kind in enumerate(kinds)]
    svg = error_curves(curves, "x", stepped=True).content
    lines = re.findall(r'style="fill: none; ([^"]*stroke: var\(--(?!line|muted)[^"]*)"', svg)
    dashes = {
        re.sub(r"stroke: var[^;]*|stroke-(linecap|opacity|width): [^;]*", "", x) for x in lines
    }
    assert len({x for x in dashes if "dash" in x}) == 5  # and one solid


def test_an_undefined_curve_is_said_to_be_undefined():
    curves = [*_curves(), Curve("norm", "norm", _GRID, np.full(20, np.nan))]
    figure = error_curves(curves, "x", stepped=False)
    assert "norm: undefined" in _texts(figure)
    assert "norm from undefined to undefined" in figure.alt


def test_exact_curves_of_many_points_stay_small_and_keep_their_steps():
    fractions = np.arange(200_000) / 200_000
    figure = error_curves(
        [Curve("model", "model", fractions, 0.3 * (1 - fractions))], "x", stepped=True
    )
    assert len(figure.content) < 150_000
    # One step at 50 %: the line must have exactly one vertical jump, drawn at the middle.
    svg = error_curves(
        [Curve("m", "model", np.array([0, 0.5]), np.array([0.4, 0.1]))], "x", stepped=True,
        discard_limit=1.0,
    ).content  # fmt: skip
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--blue[^"]*stroke-width: 2.6', svg)[1]
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=np.float64)
    assert len(np.unique(points[:, 1])) == 2
    jump_x = points[np.flatnonzero(np.diff(points[:, 1]))[0], 0]
    assert jump_x == pytest.approx((points[0, 0] + points[-1, 0]) / 2, abs=1e-3)


def test_error_free_curves_are_drawn_at_zero():
    figure = error_curves([Curve("m", "model", _GRID, np.zeros(20))], "x", stepped=False)
    assert "m from 0.00 % to 0.00 %" in figure.alt


def test_names_are_kept_apart_and_inside():
    for heights in ([0.01, 0.02, 0.03, 0.9], [0.95, 0.97, 0.99], [0.0] * 5, [0.5]):
        placed = _apart(heights)
        assert all(later - earlier > 0.07 for earlier, later in pairwise(placed))
        assert max(placed) <= 1
        assert min(placed) >= -1e-9
    assert _apart([0.1, 0.5]) == [0.1, 0.5]


def test_the_same_curves_give_the_same_bytes():
    first = error_curves(_curves(), "x", stepped=True)
    assert error_curves(_curves(), "x", stepped=True) == first


def test_nothing_to_draw_is_refused():
    for curves in ([], [Curve("m", "model", _GRID, np.full(20, np.nan))]):
        with pytest.raises(ValueError, match=f"at least one error rate, got {len(curves)} without"):
            error_curves(curves, "x", stepped=True)
