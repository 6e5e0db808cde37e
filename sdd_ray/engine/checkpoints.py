"""States of a fit in checkpoint folders of Ray Train, and in folders of trials, with a digest."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from sdd_ray.engine.fitting import EpochResult, Fit
from sdd_ray.errors import WeightsError

_STATE, _DIGEST = "state.pt", "state.sha256"


def read_state(checkpoint: Any) -> dict[str, Any]:
    """Return the state in a checkpoint of Ray Train or Ray Tune.

    Raises:
        WeightsError: It is damaged.
    """
    with checkpoint.as_directory() as folder:
        file = Path(folder) / _STATE
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            wanted = (Path(folder) / _DIGEST).read_text(encoding="ascii")
        except OSError as error:
            found, wanted = str(error), "two files"
        if found != wanted:
            raise WeightsError(
                f"the checkpoint {checkpoint.path} is damaged: expected {wanted}, got {found};"
                " without the folder that holds all checkpoints of this run, training begins anew"
            )
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return state


def write_state(fit: Fit, result: EpochResult, folder: str) -> None:
    """Write the state that `read_state` reads."""
    file = Path(folder) / _STATE
    torch.save(fit.state(result), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (Path(folder) / _DIGEST).write_text(digest, encoding="ascii")
