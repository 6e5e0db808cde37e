"""Training speed, in one run: the train command and a bare PyTorch loop, one worker and two.

    python benchmarks/train.py CONFIG [--repeats 3] [--workers 1,2] [key=value ...]

CONFIG and keys are those of `python -m sdd_ray.train`. Both ways work on the same images with the
same network, loss, optimiser and threads:

- the bare loop: images decoded into memory beforehand, one process a worker, PyTorch's own
  distributed training (gloo, on GPUs nccl) where there are several; no Ray, nothing validated;
- the command: Ray Train and Ray Data, decoding and augmentation included.

Rates are of the training pass of all epochs but the first, so without starts, compilation and the
first reading; medians of the repeats. The command's start and end are stated apart. Ways take turns
in every repeat, since machines change their speed.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from sdd_ray import train
from sdd_ray.config import load_config
from sdd_ray.core.fitting import Batch
from sdd_ray.engine.fitting import FitPlan
from sdd_ray.engine.session import session
from sdd_ray.engine.training import new_fit
from sdd_ray.engine.training_rows import TrainingData, prepare
from sdd_ray.formats.items import from_table
from sdd_ray.formats.reading import read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import load_model


def bare_loop(plan: FitPlan, data: TrainingData) -> float:
    """Return images/s of processes that hold their share of the images and train."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        rates = manager.list()
        arguments = (plan, data, f"file://{folder}/meet", rates)
        loops = [
            context.Process(target=_loop, args=(rank, *arguments)) for rank in range(plan.workers)
        ]
        for loop in loops:
            loop.start()
        for loop in loops:
            loop.join()
        if any(loop.exitcode for loop in loops):
            raise SystemExit("a process of the bare loop failed")
        return statistics.mean(rates) * plan.workers


def _loop(rank: int, plan: FitPlan, data: TrainingData, meet: str, rates: Any) -> None:
    use_gpu = plan.config.resources.use_gpu
    device = torch.device("cuda", rank) if use_gpu else torch.device("cpu")
    images, targets = _decoded(plan.config, data, rank, plan.workers)
    wrap = None
    if plan.workers > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.distributed.init_process_group(
            "nccl" if use_gpu else "gloo", init_method=meet, rank=rank, world_size=plan.workers
        )
        wrap = torch.nn.parallel.DistributedDataParallel
    fit = new_fit(plan, device, rank, wrap=wrap)
    done = seconds = 0.0
    for epoch in range(plan.config.optimiser.epochs):
        started = time.perf_counter()
        batches = _batches(images, targets, plan.batch_per_worker, epoch)
        count = sum(step.images for step in fit.fitter.train_epoch(batches, epoch, 1))
        if epoch:
            done += count
            seconds += time.perf_counter() - started
    rates.append(done / seconds)


def _decoded(config: TrainConfig, data: TrainingData, rank: int, workers: int) -> Any:
    table = data.train.table
    if table is None:
        raise SystemExit("the bare loop holds all images in memory: lower their number")
    table = table.take(np.arange(rank, table.num_rows, workers))
    with ThreadPoolExecutor(1) as threads:
        faces = read_faces(open_source(config.source), from_table(table), threads)
        return np.stack([face.pixels for face in faces]), np.asarray(table["target"], np.float32)


def _batches(images: Any, targets: Any, size: int, epoch: int) -> Iterator[Batch]:
    order = np.random.default_rng(epoch).permutation(len(targets))
    for first in range(0, len(order) - size + 1, size):
        rows = order[first : first + size]
        yield Batch(
            images[rows],
            targets[rows],
            np.ones(size, np.float32),
            rows.astype(np.uint64),
            rows,
            rows.astype(object),
        )


def command(config: TrainConfig) -> tuple[float, float]:
    """Return images/s of training, and the seconds of the command besides training."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, output=f"{folder}/model")
        started = time.perf_counter()
        with session(config.ray):
            train.run(config)
        spent = time.perf_counter() - started
        record = load_model(Location(config.output)).record
    rates = [epoch["images_per_s"] for epoch in record["history"]]
    training = sum(record["train_images"] / rate for rate in rates)
    return statistics.harmonic_mean(rates[1:]), spent - training


def main() -> None:
    """Print one row for each number of workers and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("keys", nargs="*")
    options = parser.parse_intermixed_args()
    base = load_config(TrainConfig, options.config, options.keys)
    labels = open_dataset(base.labels, ["label"])
    found: dict[tuple[int, str], list[float]] = {}
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(base, labels, Location(folder))
        counts = [int(number) for number in options.workers.split(",")]
        for _ in range(options.repeats):
            for workers in counts:
                resources = dataclasses.replace(base.resources, workers=workers)
                config = dataclasses.replace(base, resources=resources)
                plan = FitPlan(config, data.mean_target, data.train.num_rows, 0, workers=workers)
                bare = bare_loop(plan, data)
                rate, others = command(config)
                sys.stderr.write(f"{workers} worker(s): bare {bare:.1f}, command {rate:.1f} /s\n")
                found.setdefault((workers, "bare loop"), []).append(bare)
                found.setdefault((workers, "sdd_ray.train"), []).append(rate)
                apart.append(others)
    print("| workers | way | images/s, median (all) | of the bare loop |")
    print("|---|---|---|---|")
    for (workers, way), rates in found.items():
        bare = statistics.median(found[workers, "bare loop"])
        rate = statistics.median(rates)
        everyone = ", ".join(f"{value:.0f}" for value in rates)
        print(f"| {workers} | {way} | {rate:.0f} ({everyone}) | {rate / bare:.2f} |")
    print(f"start, reading, validation and end of a command: {statistics.median(apart):.0f} s")


if __name__ == "__main__":
    main()
