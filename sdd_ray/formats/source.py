"""Where images come from: the source that a configuration describes, and images by their keys."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray import columns
from sdd_ray.columns import IMAGE_ID
from sdd_ray.errors import InputError
from sdd_ray.formats.drawn import SyntheticSource
from sdd_ray.formats.folder import FolderSource
from sdd_ray.formats.items import Item, Listing, PackedSource, Source, to_table
from sdd_ray.formats.landmarks import WithLandmarks
from sdd_ray.formats.listed import open_list
from sdd_ray.formats.parquet import open_parquet
from sdd_ray.formats.recordio import open_recordio
from sdd_ray.formats.tar import open_tar
from sdd_ray.formats.tfrecord import open_tfrecord
from sdd_ray.formats.verification_bin import open_bin
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.synthetic.truth import synthetic_set


def open_source(config: SourceConfig) -> Source:
    """Return the source that the configuration describes."""
    source = _KINDS[config.kind](config, Location(config.path or "").absolute())
    if config.landmarks is None:
        return source
    return WithLandmarks(source, Location(config.landmarks).absolute(), config.landmark_order)


def _folder(config: SourceConfig, path: Location) -> Source:
    return FolderSource(path, config.identity_rule, config.suffixes)


def _synthetic(config: SourceConfig, _: Location) -> Source:
    return SyntheticSource(synthetic_set(config.synthetic))


_FILES_AT_ONCE = 8
"""Packed files listed together: on S3 most of it is waiting."""

_KINDS: dict[str, Callable[[SourceConfig, Location], Source]] = {
    "folder": _folder,
    "list": open_list,
    "parquet": open_parquet,
    "tar": open_tar,
    "recordio": open_recordio,
    "tfrecord": open_tfrecord,
    "bin": open_bin,
    "synthetic": _synthetic,
}


def locate(source: Source, image_ids: pa.ChunkedArray) -> pa.Table:
    """Return the items of some images, as a table of `columns.INDEX` in the order of the keys.

    Keys that the source does not hold have a null `file`, and fetching them says that they are not
    there. A source whose keys lead to their images by themselves is not listed. Packed files that
    cannot be listed are passed over: embed and score stop at them, unless they are told not to.

    Raises:
        InputError: The source cannot be listed.
    """
    if isinstance(source, WithLandmarks):
        return source.located(locate(source.source, image_ids))
    keys = pc.cast(image_ids, pa.string()).combine_chunks()
    empty = {name: pa.nulls(len(keys), kind) for name, kind in _KINDS_OF_COLUMNS.items()}
    for name in ("offset", "length"):
        empty[name] = pa.array(np.zeros(len(keys), np.int64))
    table = pa.table({**empty, IMAGE_ID: keys}).select(columns.INDEX.names)
    table = table.cast(columns.INDEX)
    if not source.needs_listing:
        return table
    wanted = set(keys.to_pylist())
    found = to_table(_listed(source, wanted))
    place = pc.index_in(keys, found[IMAGE_ID].combine_chunks())
    # A key that is not there takes the row of its own that says so.
    own = pa.array(np.arange(len(keys)) + found.num_rows)
    return pa.concat_tables([found, table]).take(pc.coalesce(pc.cast(place, pa.int64()), own))


def _listed(source: Source, wanted: set[str]) -> Iterator[Item]:
    if not isinstance(source, PackedSource):
        yield from (item for item in source.items(Listing()) if item.image_id in wanted)
        return
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        for items in threads.map(lambda file: _of_file(source, file, wanted), source.files()):
            yield from items


def _of_file(source: PackedSource, file: str, wanted: set[str]) -> list[Item]:
    found: list[Item] = []
    with suppress(InputError):
        found.extend(item for item in source.scan(file, Listing()) if item.image_id in wanted)
    return found


_KINDS_OF_COLUMNS = {field.name: field.type for field in columns.INDEX}
