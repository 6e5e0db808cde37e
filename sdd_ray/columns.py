"""Column names and Arrow schemas of every dataset that the commands exchange.

``image_id`` is the key everywhere, never the order of rows; it leads back to the image.
"""

import pyarrow as pa

IMAGE_ID = "image_id"
IDENTITY = "identity"
EMBEDDING = "embedding"
NORM = "norm"
CONTENT = "content"
PSEUDO_LABEL = "pseudo_label"
DISTANCE = "distance"
LEAVE_ONE_OUT = "leave_one_out"
QUALITY = "quality"
RAW_QUALITY = "raw"
REASON = "reason"
ACCEPTED = "accepted"

INDEX = pa.schema(
    [
        (IMAGE_ID, pa.string()),
        (IDENTITY, pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("landmarks", pa.list_(pa.float32())),
    ]
)
"""What a source lists: one row an image, see `sdd_ray.formats.items.Item`."""

REJECTS = pa.schema([(IMAGE_ID, pa.string()), (REASON, pa.string()), ("detail", pa.string())])
"""Rows set aside, in every output as rejects.parquet."""

QUALITIES = pa.schema(
    [
        (IMAGE_ID, pa.string()),
        (QUALITY, pa.int8()),
        (RAW_QUALITY, pa.float32()),
        (REASON, pa.string()),
    ]
)
"""Quality 0-100, larger is better; -1 with a reason where an image could not be assessed. With a
threshold also `accepted`, and where the best images of people are chosen their `identity`."""

MEASURES = ("sharpness", "contrast", "flip", "dropout")
"""Scores that need no training, in the order of their columns."""

MEASURED = pa.schema(
    [(IMAGE_ID, pa.string()), *((name, pa.float32()) for name in MEASURES), (REASON, pa.string())]
)
"""Null where a score was not asked for; all null, with a reason, for images that cannot be read."""

_QUANTILES = ("q05", "q25", "q50", "q75", "q95")

LABELS = pa.schema(
    [
        (IMAGE_ID, pa.string()),
        (IDENTITY, pa.string()),
        (DISTANCE, pa.float32()),
        ("error_bound", pa.float32()),
        ("settled_by", pa.string()),
        (LEAVE_ONE_OUT, pa.float64()),
        (PSEUDO_LABEL, pa.float32()),
        ("method", pa.string()),
        ("num_mated", pa.int64()),
        ("num_nonmated", pa.int64()),
        ("mated_mean", pa.float32()),
        ("mated_std", pa.float32()),
        ("nonmated_mean", pa.float32()),
        ("nonmated_std", pa.float32()),
        ("signed_gap", pa.float32()),
        *((f"mated_{name}", pa.float32()) for name in _QUANTILES),
        *((f"nonmated_{name}", pa.float32()) for name in _QUANTILES),
        (REASON, pa.string()),
    ]
)
"""Distance: Wasserstein-1 between the image's mated and nonmated similarities, in [0, 2]; null with
a reason where an image has none of either kind. Error bound: of the distance, 0 = exact."""

IDENTITIES = pa.schema(
    [
        (IDENTITY, pa.string()),
        ("num_images", pa.int64()),
        ("num_labelled", pa.int64()),
        ("label_mean", pa.float32()),
        ("label_std", pa.float32()),
        ("label_min", pa.float32()),
        ("label_max", pa.float32()),
        ("mated_histogram", pa.list_(pa.int64())),
        ("nonmated_histogram", pa.list_(pa.int64())),
    ]
)
"""One row an identity: its labels, and counts of its similarities in equal bins of [-1, 1]."""

ERROR_RATES = pa.schema(
    [
        ("threshold", pa.float64()),
        ("mated", pa.int64()),
        ("nonmated", pa.int64()),
        ("fmr", pa.float64()),
        ("fnmr", pa.float64()),
    ]
)
"""One row a bin of similarity of the whole set: comparisons in it, error rates at its lower end."""

SPLITS = pa.schema([(IDENTITY, pa.string()), ("part", pa.string())])
"""Which identities a model was trained on: part is train, validation or holdout."""

_STORAGE = {"float32": pa.float32(), "float16": pa.float16()}


def embeddings(size: int, storage: str = "float32") -> pa.Schema:
    """Return the schema of embeddings of `size` numbers, stored as float32 or float16.

    Embeddings have unit length; ``norm`` is the length before that. ``content`` is a 64-bit digest
    of the decoded pixels, by which equal images are found.
    """
    return pa.schema(
        [
            (IMAGE_ID, pa.string()),
            (IDENTITY, pa.string()),
            (EMBEDDING, pa.list_(_STORAGE[storage], size)),
            (NORM, pa.float32()),
            (CONTENT, pa.uint64()),
        ]
    )
