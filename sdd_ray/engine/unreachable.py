"""What an earlier attempt could not reach, looked for again: it may be there by now."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from sdd_ray.engine.progress import Progress
from sdd_ray.errors import SddError
from sdd_ray.formats.images import UNREADABLE, reason_of
from sdd_ray.formats.items import Item, Source, from_table
from sdd_ray.store.location import Location
from sdd_ray.store.run import READ_AT_ONCE, PartRecord, part_name


def unreachable(record: PartRecord) -> list[str]:
    """Return the images of a part that could not be reached."""
    return [reject.image_id for reject in record.rejects if reject.reason == UNREADABLE]


def found_again(source: Source, index: Location, records: Sequence[PartRecord | None]) -> set[str]:
    """Return the names of the parts in which an image that could not be reached is there now.

    Images that are still away are no reason to do the others of their part again.

    Args:
        source: Where the images are from.
        index: Listing of the source, one row group a part.
        records: Record of each part, in order; None where it is not finished.
    """
    lost = {number: unreachable(r) for number, r in enumerate(records) if r is not None}
    lost = {number: names for number, names in lost.items() if names}
    if not lost:
        return set()
    progress = Progress("look again", sum(map(len, lost.values())))
    found: set[str] = set()
    with index.open() as stream, ThreadPoolExecutor(READ_AT_ONCE) as threads:
        table = pq.ParquetFile(stream)
        for name, items in _items(table, lost):
            # One image that is back is enough; the others of the part are not asked for.
            for some in _portions(items):
                is_there = any(threads.map(lambda item: _is_there(source, item), some))
                progress.update(len(some))
                if is_there:
                    found.add(name)
                    break
    progress.close()
    return found


def _items(
    table: pq.ParquetFile, lost: Mapping[int, Sequence[str]]
) -> Iterator[tuple[str, list[Item]]]:
    for number, names in lost.items():
        wanted = set(names)
        rows = table.read_row_group(number)
        yield part_name(number), [item for item in from_table(rows) if item.image_id in wanted]


def _portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), READ_AT_ONCE):
        yield items[first : first + READ_AT_ONCE]


def _is_there(source: Source, item: Item) -> bool:
    try:
        [found] = source.fetch([item])
    except SddError as error:  # of the file that holds it
        found = error
    return not isinstance(found, SddError) or reason_of(found) != UNREADABLE
