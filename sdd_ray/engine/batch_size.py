"""Find the batch size with which a network is fastest on the workers of a run."""

import json
import time
from collections.abc import Iterator

import numpy as np
import ray
from numpy.typing import NDArray

from sdd_ray.engine.image_worker import FACE, ImageJob, Network
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.store.run import BATCH_SIZE, OutputRun

_SIZES = tuple(8 << power for power in range(8))
_SECONDS = 0.5
"""Time that one size is tried for."""
_SLOW = 4
"""Times as long for the first batch: then that one says enough, as on a CPU."""
_AS_FAST = 0.97
"""Of the best rate; a smaller batch needs less memory and wastes less at the end of a shard."""


def batch_size_of(job: ImageJob, run: OutputRun) -> int:
    """Return the batch size of a run: as configured, or found on a worker.

    What is found is kept with the run: a resumed one must not compute its last parts otherwise. It
    is measured by one worker alone: where several share a GPU, state a size.

    Raises:
        SddError: The network cannot be loaded on a worker.
    """
    if job.batch_size is not None:
        return job.batch_size
    note = run.work / BATCH_SIZE
    if note.exists():
        return int(json.loads(note.read_bytes())["batch_size"])
    task = ray.remote(_find).options(
        name="find the batch size",
        num_cpus=job.resources.cpus_per_worker,
        num_gpus=job.resources.gpus_per_worker or None,
    )
    found = ray.get(task.remote(job))
    if isinstance(found, SddError):
        raise found
    note.write_bytes(json.dumps({"batch_size": found}).encode())
    return int(found)


def _find(job: ImageJob) -> int | SddError:
    try:
        network = job.stage.load(job.network_threads)
    except SddError as error:
        return error
    rates: dict[int, float] = {}
    for size in _SIZES:
        if size > max(job.images_per_shard, _SIZES[0]):
            break
        try:
            rates[size] = _rate(network, size)
        except SddError as error:  # recognisers tell a lack of memory so
            if not rates:
                return ResourceError(f"the network does not run on {size} images: {error}")
            break
        if is_flat(list(rates.values())):
            break
    return fastest(rates)


def is_flat(rates: list[float]) -> bool:
    """Return whether doubling the batch twice was of no use."""
    return len(rates) > 2 and max(rates[-2:]) * _AS_FAST < max(rates[:-2])


def fastest(rates: dict[int, float]) -> int:
    """Return the smallest batch size that is nearly as fast as any, from images a second."""
    enough = _AS_FAST * max(rates.values())
    return min(size for size, rate in rates.items() if rate >= enough)


def _rate(network: Network, size: int) -> float:
    faces = np.random.default_rng(0).integers(0, 256, (size, *FACE), np.uint8)
    began = time.perf_counter()
    for _ in network([faces]):
        pass  # the first one compiles and reserves memory
    if (first := time.perf_counter() - began) > _SECONDS * _SLOW:
        return size / first
    started, done = time.perf_counter(), 0

    def batches() -> Iterator[NDArray[np.uint8]]:
        while time.perf_counter() - started < _SECONDS:
            yield faces

    for outputs in network(batches()):
        done += len(outputs)
    return done / (time.perf_counter() - started)
