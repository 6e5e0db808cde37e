"""Read the qualities of a method, of any program, for the images of an evaluation."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IMAGE_ID
from sdd_ray.core.calibration import FAILED
from sdd_ray.errors import InputError
from sdd_ray.settings import MethodConfig
from sdd_ray.store.dataset import read_any


def read_qualities(method: MethodConfig, image_ids: Sequence[str]) -> NDArray[np.float64]:
    """Return the quality of each image, (N,), larger is better; NaN where there is none.

    Raises:
        InputError: The file cannot be read, its values are no numbers, it names an image twice, or
            none of the images.
    """
    table = read_any(method.path, [IMAGE_ID, method.column])
    try:  # the file may be of any program, with other types of text and numbers
        ids = pc.cast(table[IMAGE_ID], pa.string()).combine_chunks()
        values = pc.cast(table[method.column], pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise InputError(
            f"{method.path}: expected text in {IMAGE_ID}, numbers in {method.column}: {error}"
        ) from error
    if len(pc.unique(ids)) != table.num_rows:
        raise InputError(f"{method.path}: an image_id occurs more than once")
    place = pc.index_in(pa.array(image_ids, pa.string()), ids)
    if place.null_count == len(image_ids):
        raise InputError(f"{method.path}: none of the {len(image_ids)} compared images is in it")
    qualities = np.array(values.take(place).to_numpy(zero_copy_only=False), np.float64)
    if pa.types.is_integer(table.schema.field(method.column).type):
        qualities[qualities == FAILED] = np.nan
    return qualities * method.sign
