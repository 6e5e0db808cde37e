"""Large lists of comparisons, read column by column: with their similarities, and IJB's.

Tens of millions of comparisons are no work for a loop over lines. Names of images become numbers
at once.
"""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from sdd_ray.errors import InputError
from sdd_ray.store.dataset import read_any
from sdd_ray.store.location import Location

COLUMNS = ("image_id_a", "image_id_b", "mated", "similarity")


@dataclass(frozen=True, eq=False)
class NumberedPairs:
    """Comparisons of a list between numbered images.

    Attributes:
        ids: N names, sorted.
        first, second: (M,) int32 numbers of the two images of each comparison, first < second.
        mated: (M,) whether it shows one person.
        similarities: (M,) float32, or None where the list has none.
        repeated: Comparisons that were left out because they stand there more than once.
    """

    ids: pa.Array
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    mated: NDArray[np.bool_]
    similarities: NDArray[np.float32] | None = None
    repeated: int = 0


def number_pairs(table: pa.Table, path: str) -> NumberedPairs:
    """Return the comparisons of a table with the columns of `COLUMNS`, `similarity` if it has it.

    Args:
        table: Names as text; mated as booleans.
        path: For messages.

    Raises:
        InputError: A name is missing, an image is compared with itself, a comparison stands there
            twice with different answers, or a similarity is no number.
    """
    encoded = [
        pc.dictionary_encode(table[name]).unify_dictionaries().combine_chunks()
        for name in COLUMNS[:2]
    ]
    names = pa.concat_arrays([_one(array).dictionary for array in encoded])
    ids = pc.unique(names).drop_null()
    ids = ids.take(pc.sort_indices(ids))
    nulls = sum(_one(array).null_count for array in encoded)
    if nulls or (len(ids) and ids[0].as_py() == ""):
        raise InputError(f"{path}: {max(nulls, 1)} comparisons are without a name of an image")
    ends = []
    for array in map(_one, encoded):
        place = pc.index_in(array.dictionary, ids).to_numpy(zero_copy_only=False)
        ends.append(place[array.indices.to_numpy(zero_copy_only=False)].astype(np.int32))
    itself = np.flatnonzero(ends[0] == ends[1])
    if len(itself):
        name = ids[int(ends[0][itself[0]])]
        raise InputError(f"{path}: {len(itself)} comparisons of an image with itself, first {name}")
    mated = np.asarray(table["mated"].combine_chunks().to_numpy(zero_copy_only=False), bool)
    similarities = None
    if "similarity" in table.column_names:
        similarities = _numbers(table["similarity"], path)
    pairs = NumberedPairs(ids, np.minimum(*ends), np.maximum(*ends), mated, similarities)
    return _without_repetitions(pairs, path)


def _one(array: pa.DictionaryArray | pa.ChunkedArray) -> pa.DictionaryArray:
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _numbers(column: pa.ChunkedArray, path: str) -> NDArray[np.float32]:
    values = np.asarray(column.to_numpy(), np.float32)
    faulty = int(np.count_nonzero(~np.isfinite(values)))
    if faulty:
        raise InputError(f"{path}: {faulty} similarities are missing or not finite")
    return values


def _without_repetitions(pairs: NumberedPairs, path: str) -> NumberedPairs:
    """Leave out comparisons that stand there again, and refuse those with another answer."""
    keys = pairs.first.astype(np.int64) * len(pairs.ids) + pairs.second
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[1:] = keys[order[1:]] == keys[order[:-1]]
    if not again.any():
        return pairs
    at = np.flatnonzero(again)
    for what, values in (("mated", pairs.mated), ("similarity", pairs.similarities)):
        if values is None:
            continue
        differ = values[order[at]] != values[order[at - 1]]
        if differ.any():
            row = order[at[np.flatnonzero(differ)[0]]]
            names = f"{pairs.ids[int(pairs.first[row])]} and {pairs.ids[int(pairs.second[row])]}"
            raise InputError(f"{path}: {names} are compared twice, with another value of {what}")
    kept = np.sort(order[~again])
    return NumberedPairs(
        pairs.ids,
        pairs.first[kept],
        pairs.second[kept],
        pairs.mated[kept],
        None if pairs.similarities is None else pairs.similarities[kept],
        len(at),
    )


def read_scored(path: str) -> NumberedPairs:
    """Return the comparisons of a Parquet or CSV file with the columns of `COLUMNS`.

    Args:
        path: File ending in .csv, or Parquet, local or s3://; mated: true and false, or 1 and 0.

    Raises:
        InputError: The file cannot be read, or something in it is wrong.
    """
    if path.lower().endswith(".csv"):
        table = _csv(path, Location(path).absolute().read_bytes())
    else:
        table = read_any(path, COLUMNS)
    try:
        _check_mated(table["mated"])
        cast = pa.schema(
            zip(COLUMNS, (pa.string(), pa.string(), pa.bool_(), pa.float32()), strict=True)
        )
        table = table.cast(cast)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: expected {', '.join(COLUMNS)}: {error}") from error
    if table["mated"].null_count:
        raise InputError(f"{path}: {table['mated'].null_count} comparisons say not whether mated")
    return number_pairs(table, path)


def _check_mated(mated: pa.ChunkedArray) -> None:
    """Check numbers, of which Arrow would take any but 0 as true."""
    if pa.types.is_integer(mated.type) or pa.types.is_floating(mated.type):
        values = mated.drop_null().to_numpy()
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"mated is 1 or 0, got {values[~np.isin(values, (0, 1))][0]}")


def _csv(path: str, content: bytes) -> pa.Table:
    options = pa_csv.ConvertOptions(
        include_columns=list(COLUMNS),
        column_types={name: pa.string() for name in COLUMNS[:2]},
        true_values=["1", "true", "True"],
        false_values=["0", "false", "False"],
    )
    try:
        return pa_csv.read_csv(io.BytesIO(content), convert_options=options)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path}: {error}") from error


@dataclass(frozen=True, eq=False)
class TemplateList:
    """Templates of images, and their comparisons.

    Attributes:
        image_ids: I names of images.
        templates: (I,) place in `pairs.ids` of the template of each.
        media: (I,) numbers of media.
        pairs: Comparisons of templates, whose names are their numbers as text.
    """

    image_ids: pa.Array
    templates: NDArray[np.int64]
    media: NDArray[np.int64]
    pairs: NumberedPairs


def read_ijb(templates: str, pairs: str) -> TemplateList:
    """Return the templates and comparisons of IJB-B or IJB-C.

    Args:
        templates: File of lines `image template medium` (ijbc_face_tid_mid.txt).
        pairs: File of lines `template template label` (ijbc_template_pair_label.txt), label 1 for
            mated ones.

    Raises:
        InputError: A file cannot be read, a label is neither 0 nor 1, or a template of a comparison
            has no image.
    """
    listed = _words(templates, [pa.string(), pa.int64(), pa.int64()])
    compared = _words(pairs, [pa.int64(), pa.int64(), pa.int64()])
    labels = np.asarray(compared[2])
    if not np.isin(labels, (0, 1)).all():
        raise InputError(
            f"{pairs}: expected labels 0 and 1, got {labels[~np.isin(labels, (0, 1))][0]}"
        )
    names = [pc.cast(compared[side], pa.string()) for side in (0, 1)]
    table = pa.table([*names, pa.array(labels == 1)], list(COLUMNS[:3]))
    numbered = number_pairs(table, pairs)
    place = pc.index_in(pc.cast(listed[1], pa.string()), numbered.ids)
    of_images = pc.unique(place).drop_null()
    if len(of_images) < len(numbered.ids):
        absent = len(numbered.ids) - len(of_images)
        raise InputError(f"{templates}: {absent} templates of {pairs} have no image in it")
    used = place.is_valid().to_numpy(zero_copy_only=False)
    return TemplateList(
        listed[0].filter(pa.array(used)).combine_chunks(),
        place.drop_null().to_numpy().astype(np.int64),
        listed[2].to_numpy()[used],
        numbered,
    )


def _words(path: str, types: list[pa.DataType]) -> list[pa.ChunkedArray]:
    """Return the columns of a file of words separated by spaces, without a heading."""
    names = [str(number) for number in range(len(types))]
    try:
        table = pa_csv.read_csv(
            io.BytesIO(Location(path).absolute().read_bytes()),
            read_options=pa_csv.ReadOptions(column_names=names),
            parse_options=pa_csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=[]
            ),
        )
    except pa.ArrowException as error:
        raise InputError(f"{path}: expected {len(types)} words a line: {error}") from error
    return list(table.columns)
