"""Scores that other programs wrote: CSV with any of the usual separators, and `path score` text.

A key is read as text, whatever it looks like: `007` is no number. A line that cannot be understood
is an error that names it, since a score that is silently left out would count as a failure.

Source:
    `;` and the columns Filename, UnifiedQualityScore, UnifiedQualityScore.scalar: OFIQ (BSI).
    `path score` lines: the extraction scripts of CR-FIQA, SER-FIQ, MagFace and others.
"""

import csv
import io

import pyarrow as pa
import pyarrow.csv as pa_csv

from sdd_ray.errors import InputError
from sdd_ray.store.location import Location

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""What may separate the columns of a file, by its suffix."""
TEXT = ".txt"
_SHOWN = 80


def is_score_file(path: str) -> bool:
    """Return whether a path names a file of one of these formats."""
    return path.lower().endswith((*DELIMITERS, TEXT))


def read_scores(path: str, key: str, column: str) -> pa.Table:
    """Return keys and scores of a file, as columns `key` (text) and `score`.

    Args:
        path: File ending in .csv, .tsv or .txt, local or s3://.
        key: Column that names the image; lines of text have none.
        column: Column of the score; lines of text have none.

    Raises:
        InputError: The file cannot be read, a column is missing, or a line is wrong.
    """
    content = Location(path).absolute().read_bytes()
    if path.lower().endswith(TEXT):
        return _lines(path, content)
    suffix = next(suffix for suffix in DELIMITERS if path.lower().endswith(suffix))
    head = content.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
    names, delimiter = _columns(head.decode("utf-8", "replace"), DELIMITERS[suffix], key)
    missing = [name for name in (key, column) if names.count(name) != 1]
    if missing:
        raise InputError(
            f"{path}: expected one column {' and one '.join(missing)};"
            f" the columns are {', '.join(names)[:_SHOWN]}"
        )
    try:
        table = pa_csv.read_csv(
            io.BytesIO(content),
            pa_csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                include_columns=[key, column], column_types={key: pa.string()}
            ),
        )
    except pa.ArrowException as error:
        raise InputError(f"{path}: {error}") from error
    return pa.table([table[key], table[column]], ["key", "score"])


def _columns(head: str, delimiters: str, key: str) -> tuple[list[str], str]:
    """Return the names of the columns, and what separates them: what makes the key one of them."""
    found = [
        ([name.strip() for row in csv.reader([head], delimiter=d) for name in row], d)
        for d in delimiters
    ]
    return next((f for f in found if key in f[0]), max(found, key=lambda f: len(f[0])))


def _lines(path: str, content: bytes) -> pa.Table:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    keys, scores = [], []
    for number, line in enumerate(lines, 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        try:
            key, score = words
            scores.append(float(score))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: expected `path score`, got {line[:_SHOWN]!r}"
            ) from None
        keys.append(key.strip())
    return pa.table({"key": pa.array(keys, pa.string()), "score": pa.array(scores, pa.float64())})
