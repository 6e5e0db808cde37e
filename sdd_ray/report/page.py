"""One self-contained HTML page out of sections, figures and tables.

The page loads nothing: styles are inline, figures are SVG markup or data URIs, and a content
security policy forbids the browser to ask any server. Every text is escaped; only the SVG of
`sdd_ray.report.figures` is taken as markup. The same input gives the same bytes.
"""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdd_ray.report.drawing import Figure
from sdd_ray.report.faces import Case, Cases, Face, FaceGroup
from sdd_ray.report.figures import FaceStrip, FaceTile
from sdd_ray.report.style import style_sheet

Cell = str | int | float | None

_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NO_VALUE = "–"


@dataclass(frozen=True)
class Highlight:
    """One number that a reader should take away, and what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        columns: Headings.
        rows: As many cells each as there are columns. Numbers are aligned to the right; the
            floats of a column have as many decimals as give its largest one four digits; integers
            have their thousands separated; None and NaN are a dash.
        caption: The line above; may be empty.
        note: A paragraph below; may be empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: words first, then numbers, figures and tables.

    Attributes:
        heading: Unique within a page; it is also the entry in the contents.
        text: Paragraphs, separated by empty lines.
        highlights: Numbers in large type.
        figures: Side by side where the screen is wide enough; face strips and cases take the whole
            width.
        tables: Below the figures.
    """

    heading: str
    text: str = ""
    highlights: Sequence[Highlight] = ()
    figures: Sequence[Figure | FaceStrip | Cases] = ()
    tables: Sequence[Table] = ()


def render_page(title: str, sections: Sequence[Section], facts: Mapping[str, Cell]) -> str:
    """Return the whole page as HTML text.

    Args:
        title: Heading of the page and name of the browser's tab.
        sections: In order.
        facts: How the numbers came about (versions, seeds, counts, seconds): the table at the end.

    Raises:
        ValueError: A table has a row with another number of cells than columns.
    """
    run_facts = Table(("fact", "value"), [(name, _text(value)) for name, value in facts.items()])
    headings = [*(section.heading for section in sections), "Run facts"]
    contents = "".join(
        f'<li><a href="#section-{number}">{html.escape(heading)}</a></li>'
        for number, heading in enumerate(headings, 1)
    )
    body = "".join(_section(section, number) for number, section in enumerate(sections, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n"
        f'<body>\n<div class="sheet">\n<header><h1>{html.escape(title)}</h1></header>\n'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}'
        f'<section id="section-{len(headings)}" class="facts"><h2>Run facts</h2>'
        f"{_table(run_facts)}</section>\n</main>\n</div>\n</body>\n</html>\n"
    )


def _section(section: Section, number: int) -> str:
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", section.text) if part.strip()]
    text = "".join(f"<p>{html.escape(paragraph)}</p>\n" for paragraph in paragraphs)
    figures = "".join(
        _any_figure(figure, f"s{number}f{position}-")
        for position, figure in enumerate(section.figures)
    )
    grid = f'<div class="figures">{figures}</div>\n' if figures else ""
    tables = "".join(_table(table) for table in section.tables)
    return (
        f'<section id="section-{number}"><h2>{html.escape(section.heading)}</h2>\n{text}'
        f"{_highlights(section.highlights)}{grid}{tables}</section>\n"
    )


def _highlights(highlights: Sequence[Highlight]) -> str:
    if not highlights:
        return ""
    items = "".join(
        f'<div class="highlight"><dt>{html.escape(item.label)}</dt>'
        f"<dd>{html.escape(item.value)}</dd></div>"
        for item in highlights
    )
    return f'<dl class="highlights">{items}</dl>\n'


def _any_figure(figure: Figure | FaceStrip | Cases, id_prefix: str) -> str:
    if isinstance(figure, FaceStrip):
        return _face_strip(figure)
    if isinstance(figure, Cases):
        return _cases(figure)
    return _figure(figure, id_prefix)


def _figure(figure: Figure, id_prefix: str) -> str:
    alt = html.escape(figure.alt)
    if isinstance(figure.content, bytes):
        image = f'<img src="{_data_uri(figure.content)}" alt="{alt}">'
    else:
        svg = _with_own_ids(figure.content, id_prefix)
        image = svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    return f"<figure>{image}{_caption(figure.caption)}</figure>\n"


def _face_strip(strip: FaceStrip) -> str:
    tiles = "".join(_face_tile(tile) for tile in strip.tiles)
    caption = _caption(strip.caption)
    return f'<figure class="wide"><ol class="faces">{tiles}</ol>{caption}</figure>\n'


def _face_tile(tile: FaceTile) -> str:
    value, caption = html.escape(tile.value), html.escape(tile.caption)
    alt = f"Face with value {value}, {caption}" if caption else f"Face with value {value}"
    small = f"<small>{caption}</small>" if caption else ""
    return f'<li><img src="{_data_uri(tile.png)}" alt="{alt}"><b>{value}</b>{small}</li>'


def _cases(cases: Cases) -> str:
    items = "".join(_case(case) for case in cases.cases)
    kind = "cases compact" if cases.is_compact else "cases"
    return f'<figure class="wide"><ol class="{kind}">{items}</ol></figure>\n'


def _case(case: Case) -> str:
    groups = "".join(_face_group(group) for group in case.groups)
    words = f"<b>{html.escape(case.heading)}</b><small>{html.escape(case.text)}</small>"
    return f'<li><div class="words">{words}</div><div class="groups">{groups}</div></li>'


def _face_group(group: FaceGroup) -> str:
    faces = "".join(_face(face) for face in group.faces)
    kind = ' class="subject"' if group.is_subject else ""
    title = f"<small>{html.escape(group.title)}</small>" if group.title else ""
    return f"<div{kind}>{title}<ul>{faces}</ul></div>"


def _face(face: Face) -> str:
    alt = html.escape(face.alt)
    small = f"<small>{html.escape(face.caption)}</small>" if face.caption else ""
    if face.image is None:
        return f'<li><span role="img" aria-label="{alt}, could not be read"></span>{small}</li>'
    return f'<li><img src="{_data_uri(face.image)}" alt="{alt}">{small}</li>'


def _caption(caption: str) -> str:
    return f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""


def _with_own_ids(svg: str, prefix: str) -> str:
    """Return the SVG with its identifiers made unique in a page that holds several."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    return re.sub(r'href="#', f'href="#{prefix}', svg)


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"expected {len(table.columns)} cells in a row, got {list(row)}")
    columns = [_column([row[i] for row in table.rows]) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{_align(right)}>{html.escape(name)}</th>'
        for name, (_, right) in zip(table.columns, columns, strict=True)
    )
    rows = "".join(
        _row([(texts[i], right) for texts, right in columns]) for i in range(len(table.rows))
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    note = f"<p>{html.escape(table.note)}</p>\n" if table.note else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n{note}"
    )


def _column(cells: Sequence[Cell]) -> tuple[list[str], bool]:
    """Return the texts of a column and whether they are numbers."""
    floats = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    largest = max(floats, default=0.0)
    decimals = min(max(3 - math.floor(math.log10(largest)), 0), 9) if largest else 3
    texts = [_text(cell, f",.{decimals}f") for cell in cells]
    return texts, any(isinstance(cell, (int, float)) for cell in cells)


def _row(cells: Sequence[tuple[str, bool]]) -> str:
    (first, first_right), *others = cells
    tail = "".join(f"<td{_align(right)}>{html.escape(text)}</td>" for text, right in others)
    return f'<tr><th scope="row"{_align(first_right)}>{html.escape(first)}</th>{tail}</tr>'


def _align(right: bool) -> str:
    return ' class="number"' if right else ""


def _text(cell: Cell, float_format: str = ".4g") -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return _NO_VALUE
    if isinstance(cell, float):
        return format(cell, float_format)
    return f"{cell:,}" if isinstance(cell, int) else cell


def _data_uri(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
