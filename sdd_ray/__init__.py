"""Face image quality from similarity distributions (SDD-FIQA), distributed on Ray.

The road that data takes, every arrow a command ``python -m sdd_ray.<command>``::

    images --embed--> embeddings --label--> pseudo-labels --train/tune--> model --score--> qualities
                          |                      |                                            |
                          +------------------ evaluate <--------------------------------------+

Layers, outermost first: the commands (``sdd_ray.label``, ...) are thin; ``sdd_ray.engine`` is the
only place that knows Ray; ``sdd_ray.store`` and ``sdd_ray.formats`` know files; ``sdd_ray.core``
is numerics alone. This module imports nothing of all that, so that a wrong configuration is
reported at once.

For programs: `load_model`, which needs no Ray.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdd_ray.scorer import Scorer

__version__ = "0.1.0"


def load_model(
    path: "str | os.PathLike[str]", device: str = "cpu", batch_size: int = 32
) -> "Scorer":
    """Return the quality model of a folder, ready to score images; see `sdd_ray.scorer.Scorer`.

    Args:
        path: Model folder, local or s3://.
        device: `cpu` or `cuda`.
        batch_size: Images given to the network at once.

    Raises:
        InputError: There is no model, or it is damaged.
        ResourceError: The device is not there.
        ValueError: The batch size is not positive.
    """
    from sdd_ray.scorer import Scorer

    return Scorer(path, device, batch_size)
