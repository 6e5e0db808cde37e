"""What the manifests of complete outputs say of their time, memory and bytes."""

from dataclasses import dataclass
from typing import Any

from sdd_ray.core.planning import MeasuredRun
from sdd_ray.errors import InputError
from sdd_ray.settings import MeasuredConfig
from sdd_ray.store.dataset import Dataset, open_dataset

STAGES = ("embed", "label", "train", "score", "measure")
"""Stages that can be planned, in the order of the road."""


@dataclass(frozen=True)
class StageRun:
    """A run, its stage, and for training its epochs."""

    stage: str
    run: MeasuredRun
    epochs: int | None = None


def measured_run(config: MeasuredConfig) -> StageRun:
    """Return what a complete output says of the run that made it.

    Raises:
        InputError: There is no complete output of a stage that can be planned, or nobody knows how
            many workers it had.
    """
    dataset = open_dataset(config.path, STAGES)
    manifest = dataset.manifest
    results = manifest["results"]
    network = results.get("network", {})
    # Of a run of several attempts the network's time is that of the last one.
    start = network and manifest.get("attempts", 1) == 1
    epochs = int(results["epochs"]) if manifest["command"] == "train" else None
    rows = int(results["train_images"]) if epochs else int(manifest["counts"]["rows_in"])
    return StageRun(
        manifest["command"],
        MeasuredRun(
            rows=rows * (epochs or 1),
            seconds=float(manifest["seconds"]),
            workers=config.workers or _workers(config, manifest, network),
            start_s=float(manifest["seconds"]) - network["seconds"] if start else None,
            driver_mib=float(manifest["peak_memory_mib"]["driver"]),
            worker_mib=float(manifest["peak_memory_mib"]["worker"]),
            bytes_per_row=_bytes_per_row(dataset),
        ),
        epochs,
    )


def _workers(config: MeasuredConfig, manifest: dict[str, Any], network: dict[str, Any]) -> int:
    found = network.get("workers") or manifest["config"].get("resources", {}).get("workers")
    if found is None:
        raise InputError(
            f"{config.path}: its manifest does not say how many workers it had; give it as"
            f" measured: [{{path: {config.path}, workers: ...}}]"
        )
    return int(found)


def _bytes_per_row(dataset: Dataset) -> float:
    """Return the size of a row in the first part; 0 where the output is no table."""
    if not dataset.files:
        return 0.0
    first = dataset.files[0]
    rows = int(dataset.manifest["parts"][first.uri.rpartition("/")[2]])
    return len(first.read_bytes()) / rows if rows else 0.0
