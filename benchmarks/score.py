"""Speed of scoring: the command beside a bare loop, one image at a time, and from a cold start.

    python benchmarks/score.py FOLDER [--architecture NAME] [--model FOLDER] [--repeats 3]

FOLDER holds aligned face crops. Without --model a network of the architecture with weights drawn at
random is used: they take as long. Printed are

- images/s of the command (Ray Data and its actors, Parquet and CSV written) and of a bare loop: as
  many processes of one thread each, our decoder, the network on the same batches, nothing written;
  from the first image of each worker or process to its last, the start apart;
- the latency of one image from its path to its quality in a process that is warm, p50 and p99, by
  PyTorch and by the exported ONNX file, on one thread and on all;
- the seconds of a whole process that scores one image, beside one that only imports torch.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from sdd_ray import score
from sdd_ray.core.calibration import QuantileMap
from sdd_ray.core.models import Architecture, QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.engine.session import session
from sdd_ray.formats.images import decode_image
from sdd_ray.formats.items import Listing
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import open_source
from sdd_ray.scorer import Scorer
from sdd_ray.settings import RayConfig, ScoreConfig, SourceConfig, TrainConfig
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, load_model, save_model
from sdd_ray.store.onnx_export import onnx_bytes
from sdd_ray.store.quality import QualityRunner
from sdd_ray.store.run import OutputRun, PartRecord

_BATCH = 32
_LATENCIES = 300


def drawn_model(folder: Path, architecture: str) -> str:
    """Write a model folder of random weights; return its path."""
    torch.manual_seed(0)
    built = QualityArchitecture(backbone=Architecture(name=architecture, input_size=(112, 112)))
    model = QualityModel(
        build_quality(built), built, Preprocessing(), QuantileMap.fit(np.linspace(0, 100, 101))
    )
    place = Location(str(folder))
    run = OutputRun(place, "train", TrainConfig(labels="none", output=place.uri))
    run.complete([PartRecord("model", 0, 0, save_model(place, model), 1, suffix=".safetensors")])
    return place.uri


def command(model: str, source: SourceConfig, output: str) -> dict[str, float]:
    """Run the command; return its rate and its start."""
    config = ScoreConfig(
        model=model, source=source, output=output, ray=RayConfig(dashboard=False), batch_size=_BATCH
    )
    started = time.perf_counter()
    with session(config.ray):
        score.run(config)
    whole = time.perf_counter() - started
    manifest = open_dataset(output, ["score"]).manifest
    network = manifest["results"]["network"]
    return {
        "rate": manifest["counts"]["rows_in"] * network["workers"] / network["worker_s"],
        "start_s": whole - network["seconds"],
        "workers": network["workers"],
        "images": manifest["counts"]["rows_in"],
    }


def bare_loop(model: str, source: SourceConfig, processes: int) -> float:
    """Return images/s of processes that only read, decode and run the network."""
    context = multiprocessing.get_context("spawn")
    start, spans = context.Barrier(processes), context.Queue()
    loops = [
        context.Process(target=_loop, args=(model, source, n, processes, start, spans))
        for n in range(processes)
    ]
    for loop in loops:
        loop.start()
    found = [spans.get(timeout=3600) for _ in loops]
    for loop in loops:
        loop.join()
    images = sum(images for images, _ in found)
    return images * processes / sum(seconds for _, seconds in found)


def _loop(model, source, number, processes, start, spans) -> None:  # noqa: ANN001
    torch.set_num_threads(1)
    opened = open_source(source)
    items = list(opened.items(Listing()))[number::processes]
    runner = QualityRunner(load_model(Location(model)), "cpu")
    start.wait()
    began = time.perf_counter()
    for first in range(0, len(items), _BATCH):
        faces = np.stack([read_face(opened, item) for item in items[first : first + _BATCH]])
        list(runner.qualities([faces]))
    spans.put((len(items), time.perf_counter() - began))


def latencies(model: str, paths: list[str], threads: int) -> dict[str, tuple[float, float]]:
    """Return p50 and p99 in milliseconds, from a path to a quality, by PyTorch and ONNX."""
    torch.set_num_threads(threads)
    scorer = Scorer(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content = onnx_bytes(load_model(Location(model)), "float32")
    runner = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def by_onnx(path: str) -> None:
        runner.run(None, {"images": decode_image(Path(path).read_bytes())[None]})

    found = {}
    for name, function in (("PyTorch", scorer.score), ("ONNX", by_onnx)):
        taken = []
        for number in range(_LATENCIES + 20):
            began = time.perf_counter()
            function(paths[number % len(paths)])
            taken.append(1e3 * (time.perf_counter() - began))
        p50, p99 = np.percentile(taken[20:], [50, 99])
        found[name] = (float(p50), float(p99))
    return found


def seconds_of(*words: str) -> float:
    """Return the seconds of a process of this Python; what it compiles to bytecode is kept."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def cold_starts(model: str, path: str) -> tuple[float, float]:
    """Return the seconds of a process that scores one image, and of one that imports torch."""
    program = ["-m", "sdd_ray.score", f"model={model}", f"images=[{path}]"]
    pairs = [(seconds_of(*program), seconds_of("-c", "import torch")) for _ in range(8)][1:]
    ours, floor = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(floor)


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--architecture", default="mobilefacenet")
    parser.add_argument("--model")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    source = SourceConfig(kind="folder", path=given.folder, identity="none")
    paths = [str(Path(given.folder) / i.image_id) for i in open_source(source).items(Listing())]
    with tempfile.TemporaryDirectory() as scratch:
        model = given.model or drawn_model(Path(scratch) / "model", given.architecture)
        ratios = []
        for number in range(given.repeats):
            ours = command(model, source, f"{scratch}/{number}")
            bare = bare_loop(model, source, int(ours["workers"]))
            ratios.append(ours["rate"] / bare)
            print(
                f"{ours['images']:,} images, {ours['workers']} workers: command {ours['rate']:.1f}"
                f" images/s, bare loop {bare:.1f}, ratio {ratios[-1]:.3f}; start and end"
                f" {ours['start_s']:.1f} s",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.3f}")
        for threads in (1, multiprocessing.cpu_count()):
            for name, (p50, p99) in latencies(model, paths, threads).items():
                print(f"one image, {name}, {threads} thread(s): p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        ours, floor = cold_starts(model, paths[0])
        print(f"one image from a cold start: {ours:.2f} s, of which import torch {floor:.2f} s")


if __name__ == "__main__":
    main()
