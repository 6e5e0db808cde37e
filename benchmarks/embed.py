"""Embedding speed, in one run: the embed command, a bare loop, and the usual script.

    python benchmarks/embed.py CONFIG [key=value ...]     (as for `python -m sdd_ray.embed`)
    python benchmarks/embed.py CONFIG --repeats 3 [key=value ...]

All work on the same images with the same network; medians of the repeats are printed:

- the usual script: one image at a time, Pillow, the network on one image, one process;
- the bare loop: as many processes of one thread each as the command has workers, each with its
  share of the images, our decoder, the network on batches; nothing is written;
- the command: Ray Data and its actors, Parquet written. Its start (Ray, actors, loading the
  network) is stated apart.

Rates count from the first image of each worker or process to its last; `rate_of_all` from the first
image of all to the last, so that it also shows workers that start late or end early.
"""

import dataclasses
import multiprocessing
import queue
import statistics
import sys
import tempfile
import time
from io import BytesIO

import numpy as np
from PIL import Image

from sdd_ray import embed
from sdd_ray.config import load_config
from sdd_ray.engine.session import session
from sdd_ray.errors import SddError
from sdd_ray.formats.items import Item, Listing
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import open_source
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.recogniser import load_recogniser, recogniser_spec

_SCRIPT_IMAGES = 700
"""The usual script is measured on a part of the images: it takes as long for each."""


def usual_script(config: EmbedConfig, items: list[Item]) -> float:
    """Return images/s of the script that people write first."""
    source = open_source(config.source)
    recogniser = load_recogniser(recogniser_spec(config.recogniser), threads=1)
    items = items[:: max(1, len(items) // _SCRIPT_IMAGES)]
    started = time.perf_counter()
    found = []
    for item in items:
        data = source.fetch([item])[0].data
        pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB").resize((112, 112)))
        embedding = recogniser.embed(pixels[None])[0]
        found.append(embedding / np.linalg.norm(embedding))
    return len(items) / (time.perf_counter() - started)


def bare_loop(config: EmbedConfig, items: list[Item], processes: int) -> float:
    """Return images/s of processes that only read, decode and run the network."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(processes), context.Queue()
    parts = [items[number::processes] for number in range(processes)]
    loops = [context.Process(target=_loop, args=(config, part, start, seconds)) for part in parts]
    for loop in loops:
        loop.start()
    spans: list[tuple[float, float]] = []
    while len(spans) < processes:
        try:
            spans.append(seconds.get(timeout=1))
        except queue.Empty:
            if any(loop.exitcode for loop in loops):
                for loop in loops:
                    loop.kill()  # those that are left wait for it
                sys.exit("a process of the bare loop ended before its images did")
    for loop in loops:
        loop.join()
    return len(items) * processes / sum(end - begin for begin, end in spans)


def _loop(config: EmbedConfig, items: list[Item], start, seconds) -> None:  # noqa: ANN001
    source = open_source(config.source)
    recogniser = load_recogniser(recogniser_spec(config.recogniser), threads=1)
    size = config.batch_size
    start.wait()
    began = time.time()
    batch = []
    for item in items:
        try:
            batch.append(read_face(source, item))
        except SddError:
            continue
        if len(batch) == size:
            recogniser.embed(np.stack(batch))
            batch = []
    if batch:
        recogniser.embed(np.stack(batch))
    seconds.put((began, time.time()))


def command(config: EmbedConfig) -> dict[str, float]:
    """Run the command; return its rate, start and idle share, its workers and batch size."""
    started = time.perf_counter()
    with session(config.ray):
        embed.run(config)
    whole = time.perf_counter() - started
    manifest = open_dataset(config.output, ["embed"]).manifest
    network = manifest["results"]["network"]
    images = manifest["counts"]["rows_in"]
    return {
        "rate": images * network["workers"] / network["worker_s"],
        "rate_of_all": images / network["seconds"],
        "start_s": whole - network["seconds"],
        "idle_share": network["idle_share"],
        "workers": network["workers"],
        "batch_size": manifest["results"]["batch_size"],
    }


def main() -> None:
    """Print the median rate of each way, and the ratios of the runs."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    words = sys.argv[2:]
    repeats = 3
    if "--repeats" in words:
        place = words.index("--repeats")
        repeats = int(words[place + 1])
        del words[place : place + 2]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(repeats):
            config = load_config(EmbedConfig, sys.argv[1], [*words, f"output={folder}/{number}"])
            items = list(open_source(config.source).items(Listing()))
            ours = command(config)
            same = dataclasses.replace(config, batch_size=int(ours["batch_size"]))
            bare = bare_loop(same, items, int(ours["workers"]))
            rows.append(
                {**ours, "bare": bare, "ratio": ours["rate"] / bare}
                | {"script": usual_script(config, items)}
            )
            print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(
        f"{len(items):,} images, medians of {repeats}:"
        f" usual script {middle['script']:,.0f} images/s; bare loop, {middle['workers']:.0f}"
        f" process(es), {middle['bare']:,.0f}; sdd_ray.embed {middle['rate']:,.0f},"
        f" {middle['ratio']:.2f} of the bare loop, network idle {middle['idle_share']:.1%},"
        f" start and end {middle['start_s']:.1f} s"
    )


if __name__ == "__main__":
    main()
