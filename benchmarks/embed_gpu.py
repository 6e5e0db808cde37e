"""What a GPU does while it embeds: images/s, and the share of the network's own ceiling.

    python benchmarks/embed_gpu.py [--networks iresnet50 iresnet100] [--precisions bfloat16 float16]
                                   [--batch 256] [--images FOLDER] [--ray] [--compile]

Weights are random, which takes the same time. For each network and number format it prints:

- ceiling: the network alone on a batch that stays on the device, CUDA events around it;
- decoded: `embed_many` of the package from decoded faces in host memory, copies included;
- JPEG: faces decoded by threads of this process ahead of `embed_many`, from files held in memory;
- with `--ray`: the engine of `python -m sdd_ray.embed`, decoding on all other CPUs.

Files are up to 4,096 of `--images` that can be read or, without it, as many drawn patterns. The
engine is given them over and over, under other image_ids, until they are 60,000 or more: on fewer
it would be measured while it starts.

Needs torch with CUDA; Ray only for the last. Published anchors (FIELD notes, section 6): IJB-C with
InsightFace's script 91 images/s (r50); r50 with TensorRT fp16 on an RTX 5090, batch 16: 3,029.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sdd_ray.core.models import Architecture, architecture_names, build_backbone
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import SddError
from sdd_ray.formats.images import decode_image
from sdd_ray.store.torch_recogniser import Running, TorchRecogniser, compiled
from sdd_ray.store.weights import save_weights

_SECONDS = 5.0
_FILES = 4096
_LISTED = 60_000
_PARTS = 16
_SUFFIXES = (".jpg", ".jpeg", ".png")


def ceiling(network: Callable[[torch.Tensor], torch.Tensor], precision: str, batch: int) -> float:
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


def write_patterns(folder: Path) -> None:
    """Write drawn patterns as image files."""
    draw = np.random.default_rng(0)
    for number in range(_FILES):
        small = Image.fromarray(draw.integers(0, 256, (14, 14, 3), np.uint8))
        face = small.resize((112, 112), Image.Resampling.BICUBIC)
        face.save(folder / f"{number:04d}.jpg", quality=95)


def read_images(folder: Path) -> dict[Path, bytes]:
    """Return image files that can be decoded; say how many could not."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    found: dict[Path, bytes] = {}
    errors = []
    for path in files:
        if len(found) == _FILES:
            break
        try:
            content = path.read_bytes()
            decode_image(content)
        except (OSError, SddError) as error:
            errors.append(f"{path}: {error}")
        else:
            found[path.absolute()] = content
    if errors:
        print(f"{len(errors)} images left out, the first is {errors[0]}", file=sys.stderr)
    if not found:
        sys.exit(f"{folder}: holds no {', '.join(_SUFFIXES)} file that can be read")
    return found


def write_list(path: Path, images: list[Path]) -> None:
    """List images again and again, under other image_ids, until they are many."""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(-(-_LISTED // len(images))):
            for place, image in enumerate(images):
                stream.write(f"{image}\t{number:05d}/{place:04d}\n")


def decoded_ahead(files: list[bytes], batch: int) -> Iterator[NDArray[np.uint8]]:
    """Yield batches that threads decode ahead of their use, over and over."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        waiting = []
        place = 0
        while True:
            while len(waiting) < 4:
                some = [files[(place + n) % len(files)] for n in range(batch)]
                parts = [some[k::_PARTS] for k in range(min(batch, _PARTS))]
                waiting.append([threads.submit(decode, part) for part in parts])
                place += batch
            yield np.concatenate([part.result() for part in waiting.pop(0)])


def decode(files: list[bytes]) -> NDArray[np.uint8]:
    """Return (N, 112, 112, 3) faces of N files."""
    return np.stack([decode_image(data) for data in files])


def through_ray(words: list[str], images: list[Path]) -> dict[str, float]:
    """Run the embed command on the images; return what its manifest says of the network."""
    from sdd_ray import embed
    from sdd_ray.config import load_config
    from sdd_ray.engine.session import session
    from sdd_ray.settings import EmbedConfig
    from sdd_ray.store.dataset import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        write_list(Path(folder, "images.tsv"), images)
        ours = [
            f"output={folder}/embeddings",
            "source.kind=list",
            f"source.path={folder}/images.tsv",
            "source.list_file.columns=[path,image_id]",
            "source.list_file.delimiter=tab",
            "source.identity=none",
            "resources.read_threads=1",  # as for a folder: the files are here
            "max_reject_share=1",  # random weights may overflow
        ]
        config = load_config(EmbedConfig, None, [*ours, *words])
        with session(config.ray):
            embed.run(config)
        manifest = open_dataset(config.output, ["embed"]).manifest
    used = manifest["results"]["network"]
    return {"images_s": manifest["counts"]["rows_in"] / used["seconds"], **used}


def measured(
    name: str, precision: str, images: dict[Path, bytes], options: argparse.Namespace
) -> dict:
    """Return the rates of one network and number format, and their shares of the ceiling."""
    network = build_backbone(Architecture(name=name, embedding_size=512)).eval()
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/{name}.safetensors"
        save_weights(weights, network.state_dict())
        network = network.cuda().to(memory_format=torch.channels_last)
        called = compiled(network) if options.compile else network
        running = Running(device="cuda", precision=precision)
        recogniser = TorchRecogniser(called, 512, Preprocessing(), running, {})
        files = list(images.values())
        faces = decode(list(itertools.islice(itertools.cycle(files), options.batch)))
        top = ceiling(called, precision, options.batch)
        rates = {
            "decoded": rate(recogniser, itertools.repeat(faces)),
            "jpeg": rate(recogniser, decoded_ahead(files, options.batch)),
        }
        more = {}
        if options.ray:
            words = [
                "recogniser.kind=torch",
                f"recogniser.path={weights}",
                f"recogniser.architecture={name}",
                f"recogniser.precision={precision}",
                f"recogniser.compile={'true' if options.compile else 'false'}",
                f"batch_size={options.batch}",
                "resources.gpus_per_worker=1",
            ]
            more = through_ray(words, list(images))
            rates["ray"] = more.pop("images_s")
    found = {"network": name, "precision": precision, "batch": options.batch}
    found |= {"ceiling_images_s": top, **{f"{key}_images_s": r for key, r in rates.items()}}
    return {**found, **{f"{key}_of_ceiling": round(r / top, 3) for key, r in rates.items()}, **more}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", default=["iresnet50", "iresnet100"])
    formats = ["float32", "float16", "bfloat16"]
    parser.add_argument("--precisions", nargs="+", choices=formats, default=["bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch: expected 1 or more, got {options.batch}")
    unknown = sorted(set(options.networks) - set(architecture_names()))
    if unknown:
        parser.error(
            f"--networks: expected some of {', '.join(architecture_names())}, got {unknown}"
        )
    return options


def main() -> None:
    """Print one JSON line for each network and number format."""
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here")
    print(torch.cuda.get_device_name(), torch.__version__, f"{os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            write_patterns(Path(folder))
        images = read_images(options.images or Path(folder))
        for name, precision in itertools.product(options.networks, options.precisions):
            try:
                print(json.dumps(measured(name, precision, images, options)), flush=True)
            except SddError as error:
                sys.exit(f"{name}, {precision}: {error}")


if __name__ == "__main__":
    main()
