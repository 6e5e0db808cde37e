"""Split identities into parts that share no person."""

import hashlib
from collections.abc import Iterable

PARTS = ("train", "validation", "holdout")


def split_identities(
    identities: Iterable[str], holdout_share: float, validation_share: float, seed: int
) -> dict[str, str]:
    """Return the part of each identity: train, validation or holdout.

    Identities are ordered by a digest of (seed, identity), so that the split depends neither on
    the order they come in nor on the machine.

    Args:
        identities: Identities, each once or more often.
        holdout_share: Share held out of training altogether, in [0, 1).
        validation_share: Share of the rest used to choose the best epoch, in (0, 1).
        seed: Draws the split.

    Raises:
        ValueError: There are too few identities to put one in each part asked for.

    Example:
        >>> parts = split_identities("abcdefghij", 0.2, 0.25, seed=0)
        >>> sorted(parts.values()).count("holdout"), sorted(parts.values()).count("validation")
        (2, 2)
    """
    keyed = {name: hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in identities}
    ordered = sorted(keyed, key=lambda name: keyed[name])
    num_holdout = max(round(holdout_share * len(ordered)), int(holdout_share > 0))
    num_validation = max(round(validation_share * (len(ordered) - num_holdout)), 1)
    if num_holdout + num_validation >= len(ordered):
        raise ValueError(
            f"expected more identities than {num_holdout} to hold out and {num_validation} to"
            f" validate on, got {len(ordered)}"
        )
    bounds = ((num_holdout, "holdout"), (num_holdout + num_validation, "validation"))
    return {
        name: next((part for bound, part in bounds if place < bound), "train")
        for place, name in enumerate(ordered)
    }
