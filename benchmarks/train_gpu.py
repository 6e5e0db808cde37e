"""What a GPU does while it trains: images/s, and the share of the time in which it waits.

    python benchmarks/train_gpu.py [--networks iresnet50 mobilefacenet] [--precisions bfloat16]
                                   [--batch 256] [--images FOLDER] [--compile] [--device cuda]

Weights are random, which takes the same time. For each network and number format it prints:

- ceiling: optimiser steps on a batch that stays on the device, nothing looked at in between;
- decoded: `Fitter.train_epoch` from decoded faces in host memory, mirrored and copied in each step;
- JPEG: the same from faces that threads of this process decode ahead.

The idle share is what a rate lacks to the ceiling. With Ray: `benchmarks/train.py` with
`resources.use_gpu=true`. Needs torch alone. `--device cpu` shows that it runs.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embed_gpu import decode, decoded_ahead, read_images, write_patterns
from numpy.typing import NDArray

from sdd_ray.core.fitting import Batch, Fitter, Recipe
from sdd_ray.core.models import Architecture, QualityArchitecture, architecture_names, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.schedule import Schedule

_SECONDS = 5.0


def batches(faces: Iterable[NDArray[np.uint8]]) -> Iterator[Batch]:
    """Yield batches with labels and keys."""
    for images in faces:
        rows = np.arange(len(images))
        yield Batch(
            images,
            np.linspace(0, 100, len(rows), dtype=np.float32),
            np.ones(len(rows), np.float32),
            rows.astype(np.uint64),
            rows,
            rows.astype(object),
        )


def rate(fitter: Fitter, faces: Iterable[NDArray[np.uint8]]) -> float:
    """Return images/s of training from the third batch on, for some seconds."""
    started, done = 0.0, 0
    for number, step in enumerate(fitter.train_epoch(batches(faces), 0, 10**6)):
        if number < 3:
            started = time.perf_counter()
            continue
        done += step.images
        if time.perf_counter() - started > _SECONDS:
            break
    return done / (time.perf_counter() - started)


def ceiling(fitter: Fitter, faces: NDArray[np.uint8]) -> float:
    """Return images/s of optimiser steps on inputs that stay on the device."""
    [batch] = batches([faces])
    inputs = fitter._input(fitter._moved(batch.images))
    targets = torch.as_tensor(batch.targets, device=fitter.device)
    kind = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    precision = kind[fitter.recipe.precision]
    network, optimiser = fitter.network.train(), fitter._optimiser

    def steps(number: int) -> float:
        _wait(fitter.device)
        started = time.perf_counter()
        for _ in range(number):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(fitter.device.type, precision, enabled=precision is not None):
                predicted = network(inputs)
            loss = torch.nn.functional.huber_loss(predicted.float(), targets)
            fitter._scaler.scale(loss).backward()
            fitter._scaler.step(optimiser)
            fitter._scaler.update()
        _wait(fitter.device)
        return time.perf_counter() - started

    steps(3)
    number = max(1, int(_SECONDS / max(steps(1), 1e-4)))
    return number * len(faces) / steps(number)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured(name: str, precision: Any, files: list[bytes], options: argparse.Namespace) -> dict:
    """Return the rates of one network and number format, and their idle shares."""
    device = torch.device(options.device)
    network = build_quality(QualityArchitecture(Architecture(name=name, embedding_size=512)))
    network.to(memory_format=torch.channels_last).to(device)
    if options.compile:
        network.compile()
    recipe = Recipe(Schedule(1e-4, 1), precision=precision)
    fitter = Fitter(network, Preprocessing(), recipe, device)
    faces = decode(list(itertools.islice(itertools.cycle(files), options.batch)))
    top = ceiling(fitter, faces)
    rates = {
        "decoded": rate(fitter, itertools.repeat(faces)),
        "jpeg": rate(fitter, decoded_ahead(files, options.batch)),
    }
    found = {"network": name, "precision": precision, "batch": options.batch}
    found |= {"ceiling_images_s": top, **{f"{key}_images_s": r for key, r in rates.items()}}
    return {**found, **{f"{key}_idle": round(1 - r / top, 3) for key, r in rates.items()}}


def main() -> None:
    """Print one JSON line for each network and number format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = architecture_names()
    parser.add_argument(
        "--networks", nargs="+", default=["iresnet50", "mobilefacenet"], choices=names, metavar="N"
    )
    formats = ["float32", "float16", "bfloat16"]
    parser.add_argument("--precisions", nargs="+", choices=formats, default=formats)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("torch finds no CUDA device here")
        print(torch.cuda.get_device_name(), torch.__version__, f"{os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            write_patterns(Path(folder))
        files = list(read_images(options.images or Path(folder)).values())
        for name, precision in itertools.product(options.networks, options.precisions):
            print(json.dumps(measured(name, precision, files, options)), flush=True)


if __name__ == "__main__":
    main()
