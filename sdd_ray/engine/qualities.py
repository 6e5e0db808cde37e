"""Read the qualities of a method, of any program, for the images of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.core.calibration import FAILED
from sdd_ray.errors import InputError
from sdd_ray.formats.score_files import is_score_file, read_scores
from sdd_ray.settings import MethodConfig
from sdd_ray.store.dataset import read_any


@dataclass(frozen=True, eq=False)
class Qualities:
    """The qualities of a method.

    Attributes:
        values: (N,) quality of each compared image, larger is better; NaN where there is none.
        failed: Compared images that the method could not assess: null, NaN, or -1 among integers.
        missing: Compared images that it does not name.
        unknown: Images that it names and that are not compared.
    """

    values: NDArray[np.float64]
    failed: int
    missing: int
    unknown: int


def read_qualities(method: MethodConfig, image_ids: Sequence[str]) -> Qualities:
    """Return the quality of each image.

    Raises:
        InputError: The file cannot be read, its values are no numbers, it names an image twice, or
            none of the images.
    """
    ids, scores = _read(method)
    if len(pc.unique(ids)) != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        raise InputError(
            f"{method.path}: an image_id occurs more than once: {len(twice)} do, such as"
            f" {twice[0]['values']}"
        )
    place = pc.index_in(pa.array(image_ids, pa.string()), ids)
    if place.null_count == len(image_ids):
        raise InputError(
            f"{method.path}: none of the {len(image_ids)} compared images is in it; they are named"
            f" like {image_ids[0]}, its images like {ids[0] if len(ids) else '(it has none)'}; see"
            " methods.root"
        )
    qualities = np.array(
        pc.cast(scores, pa.float64()).take(place).to_numpy(zero_copy_only=False), np.float64
    )
    if pa.types.is_integer(scores.type):
        qualities[qualities == FAILED] = np.nan
    missing = place.null_count
    return Qualities(
        qualities * method.sign,
        failed=int(np.isnan(qualities).sum()) - missing,
        missing=missing,
        unknown=len(ids) - (len(image_ids) - missing),
    )


def _read(method: MethodConfig) -> tuple[pa.Array, pa.Array]:
    """Return keys and values as they are in the file."""
    if is_score_file(method.path):
        table = read_scores(method.path, method.key, method.column)
    else:
        table = read_any(method.path, [method.key, method.column]).rename_columns(["key", "score"])
    try:  # the file may be of any program, with other types of text and numbers
        ids = pc.cast(table["key"], pa.string()).combine_chunks()
        scores = table["score"].combine_chunks()
        pc.cast(scores, pa.float64())
    except pa.ArrowException as error:
        raise InputError(
            f"{method.path}: expected text in {method.key}, numbers in {method.column}: {error}"
        ) from error
    if method.root is not None:
        prefix = method.root.rstrip("/") + "/"
        outside = pc.sum(pc.invert(pc.starts_with(ids, prefix))).as_py() or 0
        if outside == len(ids):
            raise InputError(f"{method.path}: no key begins with methods.root={method.root}")
        inside = pc.utf8_slice_codeunits(ids, len(prefix))
        ids = pc.if_else(pc.starts_with(ids, prefix), inside, ids)
    return ids, scores
