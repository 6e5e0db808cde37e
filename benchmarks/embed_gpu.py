"""What a GPU does while it embeds: images/s, and the share of the network's own ceiling.

    python benchmarks/embed_gpu.py [--networks iresnet50 iresnet100] [--precisions bfloat16 float16]
                                   [--batch 256] [--images FOLDER] [--ray] [--compile]

Weights are random, which takes the same time. For each network and number format it prints:

- ceiling: the network alone on a batch that stays on the device, CUDA events around it;
- decoded: `embed_many` of the package from decoded faces in host memory, copies included;
- JPEG: faces decoded by threads of this process ahead of `embed_many`, from files of `--images` or,
  without it, from 4,096 drawn patterns held in memory;
- with `--ray`: the engine of `python -m sdd_ray.embed` on `--images`, decoding on all other CPUs.

Needs torch with CUDA; Ray only for the last. Published anchors (FIELD notes, section 6): IJB-C with
InsightFace's script 91 images/s (r50); r50 with TensorRT fp16 on an RTX 5090, batch 16: 3,029.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sdd_ray.core.models import Architecture, build_backbone
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.formats.images import decode_image
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser
from sdd_ray.store.weights import save_weights

_SECONDS = 5.0
_PATTERNS = 4096
_SUFFIXES = (".jpg", ".jpeg", ".png")


def ceiling(network: torch.nn.Module, precision: str, batch: int) -> float:
    """Return images/s of the network alone, on a batch that stays on the device."""
    inputs = torch.randn(batch, 3, 112, 112, device="cuda").to(memory_format=torch.channels_last)
    dtype = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]
    rates = []
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        for _ in range(5):
            network(inputs)
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(20):
                network(inputs)
            end.record()
            torch.cuda.synchronize()
            rates.append(20 * batch / (begin.elapsed_time(end) / 1000))
    return statistics.median(rates)


def rate(recogniser: TorchRecogniser, batches: Iterator[NDArray[np.uint8]]) -> float:
    """Return images/s from the second batch on, for some seconds."""
    started, done = 0.0, 0
    for outputs in recogniser.embed_many(batches):
        if not started:
            started = time.perf_counter()
            continue
        done += len(outputs)
        if time.perf_counter() - started > _SECONDS:
            break
    return done / (time.perf_counter() - started)


def encoded(folder: Path | None) -> list[bytes]:
    """Return image files, from a folder or made here."""
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        return [p.read_bytes() for p in files[:_PATTERNS]]
    draw = np.random.default_rng(0)
    found = []
    for _ in range(_PATTERNS):
        small = Image.fromarray(draw.integers(0, 256, (14, 14, 3), np.uint8))
        stream = io.BytesIO()
        small.resize((112, 112), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        found.append(stream.getvalue())
    return found


def decoded_ahead(files: list[bytes], batch: int) -> Iterator[NDArray[np.uint8]]:
    """Yield batches that threads decode ahead of their use, over and over."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        waiting = []
        place = 0
        while True:
            while len(waiting) < 4:
                some = [files[(place + n) % len(files)] for n in range(batch)]
                waiting.append([threads.submit(_decode_some, some[k::16]) for k in range(16)])
                place += batch
            yield np.concatenate([part.result() for part in waiting.pop(0)])


def _decode_some(files: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([decode_image(data) for data in files])


def through_ray(name: str, precision: str, batch: int, images: Path, *, compiled: bool) -> dict:
    """Run the embed command on the folder; return what its manifest says of the network."""
    from sdd_ray import embed
    from sdd_ray.config import load_config
    from sdd_ray.engine.session import session
    from sdd_ray.settings import EmbedConfig
    from sdd_ray.store.dataset import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/{name}.safetensors"
        network = build_backbone(Architecture(name=name, embedding_size=512))
        save_weights(weights, network.state_dict())
        words = [
            f"output={folder}/embeddings",
            "source.kind=folder",
            f"source.path={images}",
            "source.identity=none",
            "recogniser.kind=torch",
            f"recogniser.path={weights}",
            f"recogniser.precision={precision}",
            f"recogniser.compile={'true' if compiled else 'false'}",
            f"batch_size={batch}",
            "resources.gpus_per_worker=1",
            "max_reject_share=1",
        ]
        config = load_config(EmbedConfig, None, words)
        with session(config.ray):
            embed.run(config)
        manifest = open_dataset(config.output, ["embed"]).manifest
    used = manifest["results"]["network"]
    return {"ray_images_s": manifest["counts"]["rows_out"] / used["seconds"], **used}


def main() -> None:
    """Print one JSON line for each network and number format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", default=["iresnet50", "iresnet100"])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    files = encoded(options.images)
    print(torch.cuda.get_device_name(), torch.__version__, f"{os.cpu_count()} CPUs")
    for name in options.networks:
        architecture = Architecture(name=name, embedding_size=512)
        network = build_backbone(architecture).eval().cuda()
        network = network.to(memory_format=torch.channels_last)
        called = torch.compile(network) if options.compile else network
        for precision in options.precisions:
            recogniser = TorchRecogniser(
                called, 512, Preprocessing(), Running(device="cuda", precision=precision), {}
            )
            faces = np.stack([decode_image(data) for data in files[: options.batch]])
            top = ceiling(called, precision, options.batch)
            found = {
                "network": name,
                "precision": precision,
                "batch": options.batch,
                "ceiling_images_s": top,
                "decoded_images_s": rate(recogniser, itertools.repeat(faces)),
                "jpeg_images_s": rate(recogniser, decoded_ahead(files, options.batch)),
            }
            if options.ray:
                sizes = (name, precision, options.batch, options.images)
                found |= through_ray(*sizes, compiled=options.compile)
            for key in ("decoded", "jpeg", "ray"):
                if f"{key}_images_s" in found:
                    found[f"{key}_of_ceiling"] = round(found[f"{key}_images_s"] / top, 3)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
