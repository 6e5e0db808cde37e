"""The best images of each person, track or other group."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray.columns import IDENTITY, IMAGE_ID, QUALITY, RAW_QUALITY
from sdd_ray.errors import InputError
from sdd_ray.formats.group_files import read_group_file
from sdd_ray.settings import BestConfig
from sdd_ray.store.dataset import read_tables
from sdd_ray.store.location import Location
from sdd_ray.store.run import PartRecord, parquet_bytes
from sdd_ray.store.summary import csv_bytes, portions

BEST = "best"


def write_best(config: BestConfig, output: Location, records: Sequence[PartRecord]) -> int:
    """Write the best images of each group beside the parts, and return how many groups there are.

    Args:
        config: Which groups, and how many images of each.
        output: Folder of the parts.
        records: The parts.

    Raises:
        InputError: The groups cannot be read, or no scored image has one.
    """
    column = IDENTITY if config.groups is None else config.column
    named = config.groups and read_group_file(config.groups, config.key, config.column)
    names = [IMAGE_ID, QUALITY, RAW_QUALITY, *([] if named else [IDENTITY])]
    found = []
    for some in portions(records):  # the best of all are among the best of each
        table = pa.concat_tables(read_tables([output / r.file for r in some], names))
        if named:
            keys, groups = named
            table = table.append_column(column, groups.take(pc.index_in(table[IMAGE_ID], keys)))
        found.append(best_of_groups(table, column, config.count).drop_columns(["rank"]))
    best = best_of_groups(pa.concat_tables(found), column, config.count)
    if best.num_rows == 0:
        raise InputError(
            f"best: no scored image has a group in {config.groups}, column {config.column}"
            if config.groups
            else "best: no scored image has an identity; see source.identity"
        )
    best = best.select([column, "rank", IMAGE_ID, QUALITY, RAW_QUALITY])
    (output / f"{BEST}.parquet").write_bytes(parquet_bytes(best))
    (output / f"{BEST}.csv").write_bytes(csv_bytes(best))
    return len(pc.unique(best[column]))


def best_of_groups(table: pa.Table, column: str, count: int) -> pa.Table:
    """Return the best images of each group, best first.

    Args:
        table: Rows with image_id, raw and the column of the group. Rows without a quality or a
            group are never chosen.
        column: Of the group.
        count: Images of each group, at least 1; a smaller group gives all that it has.

    Returns:
        The rows, with a column `rank` from 1, sorted by group and rank. Of equal qualities the
        smaller image_id comes first.

    Raises:
        ValueError: The count is less than 1.
    """
    if count < 1:
        raise ValueError(f"expected to choose at least 1 image, got {count}")
    usable = pc.and_(pc.is_valid(table[RAW_QUALITY]), pc.is_valid(table[column]))
    order = [(column, "ascending"), (RAW_QUALITY, "descending"), (IMAGE_ID, "ascending")]
    found = table.filter(usable).sort_by(order)
    groups = pc.dictionary_encode(found[column]).combine_chunks()
    codes = np.asarray(groups.indices if found.num_rows else [], np.int64)
    starts = np.searchsorted(codes, codes, "left")  # in order of appearance, as the rows are sorted
    rank = np.arange(len(codes)) - starts + 1
    chosen = rank <= count
    return found.append_column("rank", pa.array(rank, pa.int64())).filter(pa.array(chosen))
