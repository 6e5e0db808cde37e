"""The page: well-formed, escaped, self-contained, accessible, and the same every time."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sdd_ray.report.curves import Curve, error_curves
from sdd_ray.report.drawing import Figure, to_png
from sdd_ray.report.figures import face_strip, label_histogram
from sdd_ray.report.page import Highlight, Section, Table, render_page

_VOID = {"meta", "link", "img", "br", "hr", "input"}
_NASTY = "<script>alert(\"1\")</script> & 'so on'"


class _Reader(HTMLParser):
    """Collects what a page holds, and insists that every element is closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def _page():
    grid = np.arange(20) / 20
    curve = error_curves([Curve("m", "model", grid, 0.2 - 0.1 * grid)], "EVRC", stepped=False)
    histogram = label_histogram(np.linspace(0, 100, 30), "A caption")
    photo = Figure(to_png(np.zeros((4, 4, 3), dtype=np.uint8)), "A black square")
    faces = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (1, 2)]
    return render_page(
        "A report",
        [
            Section("Labels", "One.\n\nTwo.", [Highlight("0.8", "Spearman")], [histogram, photo]),
            Section("Twice the same", figures=[histogram, histogram, curve]),
            Section(
                "Faces",
                figures=[face_strip(faces, np.array([2.0, 1.0]), ["b", ""], "Worst first")],
                tables=[
                    Table(["quality", "FNMR", "images"], [["model", 0.125, 12345]], "In words")
                ],
            ),
        ],
        {"seed": 7, "threshold": 0.31415926, "nothing": None},
    )


def test_page_is_well_formed_and_holds_everything():
    reader = _Reader(_page())
    for words in ("A report", "One.", "Two.", "Spearman", "A caption", "Worst first", "In words"):
        assert words in reader.text
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("svg") == 4
    assert tags.count("figure") == 6
    assert tags.count("table") == 2  # one of them the run facts
    assert tags.count("p") == 2
    assert reader.text.index("Run facts", reader.text.index("In words")) > 0


def test_page_loads_nothing():
    page = _page()
    reader = _Reader(page)
    for reference in (*reader.attributes("src"), *reader.attributes("href"),
                      *reader.attributes("xlink:href")):  # fmt: skip
        assert reference.startswith(("#", "data:"))
    assert "script" not in [tag for tag, _ in reader.elements]
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in next(
        attrs["content"] for _, attrs in reader.elements if "http-equiv" in attrs
    )


def test_identifiers_are_unique_and_every_reference_is_answered():
    reader = _Reader(_page())
    identifiers = reader.attributes("id")
    assert len(identifiers) == len(set(identifiers)) == 13
    inner = [r for r in reader.attributes("xlink:href") + reader.attributes("href") if r[0] == "#"]
    clips = re.findall(r"url\(#([^)]+)\)", _page())
    assert {reference[1:] for reference in inner} | set(clips) <= set(identifiers)
    assert clips


def test_contents_lead_to_each_section_and_to_the_run_facts():
    reader = _Reader(_page())
    links = [attrs["href"] for tag, attrs in reader.elements if tag == "a"]
    sections = ["#" + attrs["id"] for tag, attrs in reader.elements if tag == "section"]
    assert links == sections
    assert len(links) == 4


def test_every_picture_has_words():
    reader = _Reader(_page())
    for tag, attrs in reader.elements:
        if tag == "img":
            assert len(attrs["alt"]) > 3
        if tag == "svg":
            assert attrs["role"] == "img"
            assert len(attrs["aria-label"]) > 20
    assert "Face with value 1.00" in reader.attributes("alt")
    assert "Face with value 2.00, b" in reader.attributes("alt")


def test_all_text_is_escaped():
    face = np.zeros((2, 2, 3), dtype=np.uint8)
    figures = [
        Figure(to_png(face), _NASTY, _NASTY),
        Figure('<svg xmlns="x"></svg>', _NASTY, _NASTY),
        face_strip([face], np.array([1.0]), [_NASTY], _NASTY),
    ]
    page = render_page(
        _NASTY,
        [
            Section(
                _NASTY, _NASTY, [Highlight(_NASTY, _NASTY)], figures,
                [Table([_NASTY, "b"], [[_NASTY, _NASTY]], _NASTY)],
            )
        ],
        {_NASTY: _NASTY},
    )  # fmt: skip
    reader = _Reader(page)
    assert "<script" not in page
    assert "script" not in [tag for tag, _ in reader.elements]
    # title, h1, contents, heading, text; 2 of the highlight; 3 figures, 1 face; 4 of the table; 2
    # of the run facts: in the text, besides those in attributes.
    assert reader.text.count(_NASTY) == 5 + 2 + 4 + 4 + 2
    assert reader.attributes("alt") == [_NASTY, f"Face with value 1.00, {_NASTY}"]
    assert reader.attributes("aria-label") == ["Contents", _NASTY]


def test_numbers_of_a_column_share_their_decimals():
    rows = [["a", 60.7712, 0.05, 1234567, 5.0], ["b", 4.9, float("nan"), 3, None]]
    page = render_page("t", [Section("s", tables=[Table(["q", "w", "x", "y", "z"], rows)])], {})
    cells = re.findall(r"<td class=\"number\">([^<]*)</td>", page)
    assert cells == ["60.77", "0.05000", "1,234,567", "5.000", "4.90", "–", "3", "–"]


def test_run_facts_are_written_one_by_one():
    cells = re.findall(r"<td>([^<]*)</td>", _page())
    assert cells == ["7", "0.3142", "–"]


def test_page_is_the_same_every_time():
    assert _page() == _page()


def test_page_of_no_sections_still_has_its_facts():
    reader = _Reader(render_page("t", [], {"seed": 1}))
    assert "seed" in reader.text


def test_ragged_tables_are_refused():
    with pytest.raises(ValueError, match=r"expected 2 cells in a row, got \['x'\]"):
        render_page("t", [Section("s", tables=[Table(["a", "b"], [["x"]])])], {})


def test_a_note_stands_below_its_table_and_is_escaped():
    reader = _Reader(render_page("t", [Section("s", tables=[Table(["a"], [], note=_NASTY)])], {}))
    assert _NASTY in reader.text
    tags = [tag for tag, _ in reader.elements]
    assert tags.index("p") > tags.index("table")
    without = render_page("t", [Section("s", tables=[Table(["a"], [])])], {})
    assert "<p>" not in without
