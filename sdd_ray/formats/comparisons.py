"""Lists of comparisons with a known answer: InsightFace's .bin, LFW's and CFP's text files, tables.

They say which images to compare and whether these show one person; what is wrong in one is an
error that names the line, because a list that was half understood would give a figure that looks
like any other.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray.core.verification import consecutive_folds
from sdd_ray.errors import InputError
from sdd_ray.formats.verification_bin import read_bin
from sdd_ray.settings import PairsConfig
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import parquet_bytes

COMPARISONS = pa.schema(
    [
        ("image_id_a", pa.string()),
        ("image_id_b", pa.string()),
        ("mated", pa.bool_()),
        ("fold", pa.int64()),
    ]
)
"""One row a comparison; folds are numbered from 0."""

NUM_FOLDS = 10
"""Folds of a list that names none, each of comparisons that follow each other in the list."""

_MATED = {"1": True, "true": True, "0": False, "false": False}
_SHOWN = 80
"""Characters of a wrong line in its message."""
_MOST_DIGITS = 9


class _Row(NamedTuple):
    """One comparison: where it stands, whom it compares, and the name of its fold if it has one."""

    where: str
    image_id_a: str
    image_id_b: str
    mated: bool
    fold: str | None = None


def read_comparisons(config: PairsConfig) -> pa.Table:
    """Return the comparisons of a list in its order, as a table of `COMPARISONS`.

    Raises:
        InputError: The list is missing or damaged; the message names the line.
    """
    place = Location(config.path).absolute()
    rows = list(_READERS[config.kind](config, place))
    for row in rows:
        if not row.image_id_a or not row.image_id_b:
            raise InputError(f"{row.where}: an image_id is empty")
        if row.image_id_a == row.image_id_b:
            raise InputError(f"{row.where}: {row.image_id_a} is compared with itself")
    if len(rows) < NUM_FOLDS:
        raise InputError(f"{place.uri}: expected at least {NUM_FOLDS} comparisons, got {len(rows)}")
    columns = [pa.array(values) for values in list(zip(*rows, strict=True))[1:4]]
    return pa.table([*columns, _folds(rows)], schema=COMPARISONS)


def digest_of_comparisons(comparisons: pa.Table) -> str:
    """Return the SHA-256 of a list of comparisons, whatever format it was read from."""
    return hashlib.sha256(parquet_bytes(comparisons)).hexdigest()


def _folds(rows: list[_Row]) -> pa.Array:
    """Return the folds numbered in order of their first comparison."""
    nameless = next((row for row in rows if row.fold is None), None)
    if nameless is None:
        return pc.cast(pa.array([row.fold for row in rows]).dictionary_encode().indices, pa.int64())
    named = next((row for row in rows if row.fold is not None), None)
    if named is not None:
        raise InputError(f"{nameless.where}: no fold, but {named.where} has one")
    return pa.array(consecutive_folds(len(rows), NUM_FOLDS))


def _read_bin(config: PairsConfig, place: Location) -> Iterator[_Row]:
    """Yield the comparisons of an InsightFace set: picture 0 with 1, 2 with 3, and so on."""
    _, same = read_bin(place)
    for number, mated in enumerate(same.tolist()):
        where = f"{place.uri}, comparison {number}"
        key_a, key_b = (
            _key(where, config.image_id_pattern, number=2 * number + side) for side in (0, 1)
        )
        yield _Row(where, key_a, key_b, mated)


def _read_lfw(config: PairsConfig, place: Location) -> Iterator[_Row]:
    """Yield the comparisons of LFW's pairs.txt.

    The first line may hold the number of sets and that of comparisons of each kind in a set, or
    the latter alone. Then a line of three fields is mated: name, number, number; one of four is
    nonmated: name, number, name, number.

    Source:
        http://vis-www.cs.umass.edu/lfw/README.txt, sections 3a to 3c.
    """
    lines = [(where, text.split()) for where, text in _lines(place)]
    has_head = bool(lines) and len(lines[0][1]) < 3
    head_where, head_words = lines.pop(0) if has_head else ("", [])
    head = [_number(head_where, word) for word in head_words]
    is_mated = [_is_mated(where, words) for where, words in lines]
    num_sets = head[0] if len(head) == 2 else 1
    if head:
        expected, found = num_sets * head[-1], (sum(is_mated), len(lines) - sum(is_mated))
        if found != (expected, expected):
            raise InputError(
                f"{place.uri}: its first line says {expected:,} mated and as many nonmated"
                f" comparisons, there are {found[0]:,} and {found[1]:,}; is the file whole?"
                " (It may go without that line)"
            )
    for number, ((where, words), mated) in enumerate(zip(lines, is_mated, strict=True)):
        key_a, key_b = (
            _key(where, config.image_id_pattern, name=name, number=_number(where, image))
            for name, image in ((words[0], words[1]), (words[-2 if not mated else 0], words[-1]))
        )
        fold = str(number * num_sets // len(lines)) if num_sets > 1 else None
        yield _Row(where, key_a, key_b, mated, fold)


def _is_mated(where: str, words: list[str]) -> bool:
    if len(words) not in (3, 4):
        raise InputError(
            f"{where}: expected `name number number` or `name number name number`,"
            f" got {len(words)} fields: {' '.join(words)[:_SHOWN]!r}"
        )
    return len(words) == 3


def _read_cfp(config: PairsConfig, place: Location) -> Iterator[_Row]:
    """Yield the comparisons of CFP: Pair_list_F.txt, Pair_list_P.txt, and Split/FF or Split/FP.

    The lists number the frontal and the profile pictures; below Split every folder is a fold, with
    same.txt and diff.txt of lines `number,number`.

    Source:
        Sengupta et al., "Frontal to Profile Face Verification in the Wild", WACV 2016.
    """
    lists = [_cfp_pictures(place / f"Pair_list_{letter}.txt") for letter in config.protocol]
    split = place / "Split" / config.protocol
    for fold in (entry.name for entry in split.entries() if entry.is_folder):
        for name, mated in (("same.txt", True), ("diff.txt", False)):
            for where, text in _lines(split / fold / name):
                words = text.split(",")
                if len(words) != 2:
                    raise InputError(f"{where}: expected `number,number`, got {text[:_SHOWN]!r}")
                keys = [
                    _picture(where, pictures, word)
                    for pictures, word in zip(lists, words, strict=True)
                ]
                yield _Row(where, keys[0], keys[1], mated, fold)


def _cfp_pictures(place: Location) -> dict[int, str]:
    """Return the image_id `<person>/<pose>/<file>` of each number."""
    pictures: dict[int, str] = {}
    for where, text in _lines(place):
        number, _, path = text.partition(" ")
        key = "/".join(path.strip().split("/")[-3:])
        if key.count("/") != 2:
            raise InputError(
                f"{where}: expected `number path`, the path ending in person/pose/file,"
                f" got {text[:_SHOWN]!r}"
            )
        if pictures.setdefault(_number(where, number), key) != key:
            raise InputError(f"{where}: number {number} occurs a second time")
    return pictures


def _picture(where: str, pictures: dict[int, str], word: str) -> str:
    number = _number(where, word)
    if number not in pictures:
        raise InputError(f"{where}: no picture {number}; the list has {len(pictures):,}")
    return pictures[number]


def _read_table(_: PairsConfig, place: Location) -> Iterator[_Row]:
    """Yield the comparisons of a table: image_id_a, image_id_b, mated, and fold if there is one."""
    suffix = place.uri.rpartition(".")[2].lower()
    if suffix not in _TABLES:
        expected = ", ".join("." + name for name in _TABLES)
        raise InputError(f"{place.uri}: expected a file of {expected}")
    for where, values in _TABLES[suffix](place):
        image_id_a, image_id_b, mated, *fold = values
        if (mated or "").lower() not in _MATED:
            raise InputError(f"{where}: mated: expected 0, 1, true or false, got {mated!r}")
        is_mated = _MATED[(mated or "").lower()]
        yield _Row(where, image_id_a or "", image_id_b or "", is_mated, *(f or None for f in fold))


_Texts = Iterator[tuple[str, list[str | None]]]
"""Where a row of a table stands, and its wanted columns as text."""


def _parquet_rows(place: Location) -> _Texts:
    table = read_parquet(place)
    wanted = [table.column(name) for name in _wanted(table.column_names, place)]
    try:
        columns = [pc.cast(column, pa.string()).to_pylist() for column in wanted]
    except pa.ArrowException as error:
        raise InputError(f"{place.uri}: expected text, numbers, true or false: {error}") from error
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        yield f"{place.uri}, row {number}", list(values)


def _csv_rows(place: Location) -> _Texts:
    return _delimited(place, ",")


def _tsv_rows(place: Location) -> _Texts:
    return _delimited(place, "\t")


_TABLES: dict[str, Callable[[Location], _Texts]] = {
    "parquet": _parquet_rows,
    "csv": _csv_rows,
    "tsv": _tsv_rows,
}


def _delimited(place: Location, delimiter: str) -> _Texts:
    reader = csv.reader(io.StringIO(_text(place), newline=""), delimiter=delimiter, strict=True)
    try:
        head = next(reader, [])
        chosen = [head.index(name) for name in _wanted(head, place)]
        for values in reader:
            where = f"{place.uri}, line {reader.line_num}"
            if values and len(values) != len(head):
                raise InputError(f"{where}: expected {len(head)} fields, got {len(values)}")
            if values:
                yield where, [values[column] for column in chosen]
    except csv.Error as error:
        raise InputError(f"{place.uri}, line {reader.line_num}: {error}") from error


def _wanted(names: list[str], place: Location) -> list[str]:
    """Return the columns that are read, of those that a table has."""
    *needed, fold = COMPARISONS.names
    wanted = [*needed, fold] if fold in names else needed
    wrong = [name for name in wanted if names.count(name) != 1]
    if wrong:
        raise InputError(
            f"{place.uri}: expected one column {', '.join(wrong)};"
            f" the columns are {', '.join(names)[:_SHOWN]}"
        )
    return wanted


def _key(where: str, pattern: str, **fields: str | int) -> str:
    try:
        return pattern.format(**fields)
    except ValueError as error:
        raise InputError(f"{where}: pairs.image_id={pattern} does not fit: {error}") from error


def _lines(place: Location) -> Iterator[tuple[str, str]]:
    """Yield where each line that is not blank stands, and its text."""
    for number, text in enumerate(_text(place).splitlines(), start=1):
        if text.strip():
            yield f"{place.uri}, line {number}", text.strip()


def _text(place: Location) -> str:
    try:
        return place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place.uri} is no text in UTF-8: {error}") from error


def _number(where: str, word: str) -> int:
    word = word.strip()
    if not (word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS):
        raise InputError(f"{where}: expected a number, got {word[:_SHOWN]!r}")
    return int(word)


_READERS: dict[str, Callable[[PairsConfig, Location], Iterator[_Row]]] = {
    "bin": _read_bin,
    "lfw": _read_lfw,
    "cfp": _read_cfp,
    "table": _read_table,
}
