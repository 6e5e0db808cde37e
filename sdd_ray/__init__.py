"""Face image quality from similarity distributions (SDD-FIQA), distributed on Ray.

The road that data takes, every arrow a command ``python -m sdd_ray.<command>``::

    images --embed--> embeddings --label--> pseudo-labels --train/tune--> model --score--> qualities
                          |                      |                                            |
                          +------------------ evaluate <--------------------------------------+

Layers, outermost first: the commands (``sdd_ray.label``, ...) are thin; ``sdd_ray.engine`` is the
only place that knows Ray; ``sdd_ray.store`` and ``sdd_ray.formats`` know files; ``sdd_ray.core``
is numerics alone. This module imports nothing, so that a wrong configuration is reported at once.
"""

__version__ = "0.1.0"
