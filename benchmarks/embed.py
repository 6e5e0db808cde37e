"""Embedding speed: the embed command beside a bare loop with the same decoder and network.

    python benchmarks/embed.py CONFIG [key=value ...]     (as for `python -m sdd_ray.embed`)

Both run on the same source and recogniser, one after the other, into a temporary folder. The bare
loop is one process and one thread; the command has as many workers as the configuration says.
"""

import sys
import tempfile
import time

import numpy as np

from sdd_ray import embed
from sdd_ray.config import load_config
from sdd_ray.engine.session import session
from sdd_ray.errors import SddError
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import Listing, open_source
from sdd_ray.settings import EmbedConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.recogniser import load_recogniser, recogniser_spec


def bare_loop(config: EmbedConfig) -> tuple[int, float]:
    """Return how many images one thread embeds, and in how many seconds."""
    source = open_source(config.source)
    recogniser = load_recogniser(recogniser_spec(config.recogniser), threads=1)
    items = list(source.items(Listing()))
    started = time.perf_counter()
    batch = []
    for item in items:
        try:
            batch.append(read_face(source, item))
        except SddError:
            continue
        if len(batch) == config.batch_size:
            recogniser.embed(np.stack(batch))
            batch = []
    if batch:
        recogniser.embed(np.stack(batch))
    return len(items), time.perf_counter() - started


def main() -> None:
    """Print images per second of both, and what Ray's start costs."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*sys.argv[2:], f"output={folder}/embeddings"]
        config = load_config(EmbedConfig, sys.argv[1], overrides)
        images, seconds = bare_loop(config)
        print(f"bare loop, one thread: {images / seconds:,.0f} images/s")
        started = time.perf_counter()
        with session(config.ray):
            start_up = time.perf_counter() - started
            embed.run(config)
        total = open_dataset(config.output, ["embed"]).manifest["seconds"]
        rate = images / total
        print(
            f"sdd_ray.embed: {rate:,.0f} images/s, actors' start included;"
            f" {rate * seconds / images:.2f} of the bare loop; Ray's start {start_up:.1f} s"
        )


if __name__ == "__main__":
    main()
