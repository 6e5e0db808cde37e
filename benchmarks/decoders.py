"""Speed of JPEG decoders on face crops: Pillow, OpenCV and libjpeg-turbo's own interface.

    python benchmarks/decoders.py [ARCHIVE ...] [--images 2000] [--repeats 9]

An archive is a tar of JPEG files of 112 x 112; without one, those of the real test data are taken
(SDD_RAY_TEST_DATA, else ../shared/data). Each decoder turns bytes into a (112, 112, 3) array in
RGB, on one thread and on four. The decoders take turns in every repeat, so that a busy machine is
slow for all of them; figures are medians, ratios are medians of the ratios within a repeat. On a
machine that others use, the time of the CPU says more than the clock on the wall.

OpenCV, simplejpeg and PyTurboJPEG are no dependencies of the project: install what is to be
compared into an environment aside, and run with PYTHONPATH at the repository. `simplejpeg, checked`
is what decode_image could be with it: size, orientation and end of file are looked at, too.
"""

import argparse
import importlib
import os
import statistics
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdd_ray.formats.images import DEFAULT_LIMITS, decode_image

ARCHIVES = ("cfp112.tar", "celeba299.tar")
THREADS = (1, 4)
_HEAD_BYTES = 64 << 10

Decoder = Callable[[bytes], NDArray[np.uint8]]


def pillow(data: bytes) -> NDArray[np.uint8]:
    """Decode with Pillow and nothing else."""
    return np.array(Image.open(BytesIO(data)))


def pillow_without_array(data: bytes) -> Image.Image:
    """Decode into Pillow's own memory, which is what all uses of Pillow pay."""
    image = Image.open(BytesIO(data))
    image.load()
    return image


def optional(name: str) -> Any:
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def with_opencv(cv2: Any) -> dict[str, Decoder]:
    """Return OpenCV's decoder, on the caller's thread."""
    cv2.setNumThreads(1)

    def decode(data: bytes) -> NDArray[np.uint8]:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))

    return {"OpenCV": decode}


def with_simplejpeg(simplejpeg: Any) -> dict[str, Decoder]:
    """Return simplejpeg, bare and with the checks of decode_image."""

    def decode(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(simplejpeg.decode_jpeg(data))

    def checked(data: bytes) -> NDArray[np.uint8]:
        head = data[:_HEAD_BYTES]
        if data[:2] != b"\xff\xd8" or b"Exif\0" in head or b"http://ns.adobe.com/xap" in head:
            return decode_image(data)
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        is_crop = (height, width) == (112, 112) and data.rfind(b"\xff\xd9") > 0
        if not is_crop or height * width > DEFAULT_LIMITS.max_pixels:
            return decode_image(data)
        return np.asarray(simplejpeg.decode_jpeg(data))

    return {"simplejpeg": decode, "simplejpeg, checked": checked}


def with_turbojpeg(turbojpeg: Any) -> dict[str, Decoder]:
    """Return PyTurboJPEG, if it finds the library that it binds."""
    try:
        library = turbojpeg.TurboJPEG()
    except (RuntimeError, OSError) as error:
        print(f"PyTurboJPEG is left out: {str(error).splitlines()[0]}")
        return {}
    return {"PyTurboJPEG": lambda data: np.asarray(library.decode(data, turbojpeg.TJPF_RGB))}


def decoders() -> dict[str, Decoder]:
    """Return every decoder that is installed here, by name."""
    found: dict[str, Decoder] = {"Pillow": pillow, "decode_image": decode_image}
    for name, make in (
        ("cv2", with_opencv),
        ("simplejpeg", with_simplejpeg),
        ("turbojpeg", with_turbojpeg),
    ):
        module = optional(name)
        if module is None:
            print(f"{name} is not installed")
        else:
            found |= make(module)
    return found


def read_images(archive: Path, most: int) -> list[bytes]:
    """Return some JPEG files of a tar, from all over it."""
    with tarfile.open(archive) as members:
        files = [member for member in members if member.name.endswith(".jpg")]
        chosen = files[:: max(1, len(files) // most)][:most]
        contents = [members.extractfile(member) for member in chosen]
        return [content.read() for content in contents if content is not None]


def seconds(
    decode: Callable[[bytes], object], images: list[bytes], threads: int
) -> tuple[float, float]:
    """Return how long it takes to decode all images, on the wall and by all CPUs together."""
    # Not one task an image, whose cost would be measured, too.
    parts = [images[first::threads] for first in range(threads)]

    def decode_part(part: list[bytes]) -> None:
        for data in part:
            decode(data)

    with ThreadPoolExecutor(threads) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(decode_part, parts))
        return time.perf_counter() - wall, time.process_time() - cpu


def agreement(decode: Decoder, images: list[bytes]) -> str:
    """Return how many images have Pillow's pixels, and the largest difference."""
    equal, largest = 0, 0
    for data in images:
        difference = np.abs(decode(data).astype(int) - pillow(data)).max()
        equal += difference == 0
        largest = max(largest, int(difference))
    return f"{equal / len(images):7.1%} equal, at most {largest} grey levels apart"


def measure(images: list[bytes], repeats: int) -> None:
    """Print rates and ratios of all decoders on one set of images."""
    found = decoders()
    timed: dict[str, Callable[[bytes], object]] = {**found, "(no array)": pillow_without_array}
    for threads in THREADS:
        rounds = [
            [seconds(decode, images, threads) for decode in timed.values()]
            for _ in range(repeats + 1)
        ]
        # (repeats, decoders, wall and CPU); the first round warms caches.
        times = np.array(rounds[1:])
        ratios = np.median(times[:, [list(timed).index("decode_image")]] / times, axis=0)
        print(
            f"  threads: {threads:11}     images/s  x decode_image   CPU us/image  x decode_image"
        )
        for name, (wall, cpu), (faster, cheaper) in zip(
            timed, np.median(times, axis=0), ratios, strict=True
        ):
            rate, cost = len(images) / wall, cpu / len(images) * 1e6
            print(f"    {name:20}{rate:12,.0f}{faster:16.2f}{cost:15.1f}{cheaper:16.2f}")
    for name, decode in found.items():
        print(f"    {name:20} {agreement(decode, images)}")


def main() -> None:
    """Measure on each archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archives", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SDD_RAY_TEST_DATA", default))
    for archive in options.archives or [folder / name for name in ARCHIVES]:
        images = read_images(archive, options.images)
        size = statistics.mean(map(len, images)) / 1024
        print(f"{archive.name}: {len(images):,} images of {size:.1f} KiB, {os.cpu_count()} CPUs")
        measure(images, options.repeats)


if __name__ == "__main__":
    main()
