"""Groups of images or people: which key belongs to which group, from Parquet, CSV or TSV."""

import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray.errors import InputError
from sdd_ray.formats.score_files import is_score_file, read_scores
from sdd_ray.store.dataset import read_any


def read_group_file(path: str, key: str, column: str) -> tuple[pa.Array, pa.Array]:
    """Return keys and the groups of each, as text; a group may be null.

    Args:
        path: Parquet (a file, a folder of files, or a dataset), .csv or .tsv.
        key: Column of the key.
        column: Column of the group.

    Raises:
        InputError: The file cannot be read, is not text, or names a key twice.
    """
    if is_score_file(path):
        table = read_scores(path, key, column)
    else:
        table = read_any(path, [key, column]).rename_columns(["key", "score"])
    try:
        keys, groups = (pc.cast(table[n], pa.string()).combine_chunks() for n in ("key", "score"))
    except pa.ArrowException as error:
        raise InputError(f"{path}: expected text: {error}") from error
    if len(pc.unique(keys)) < len(keys):
        raise InputError(f"{path}: {key} has a value more than once")
    return keys, groups
