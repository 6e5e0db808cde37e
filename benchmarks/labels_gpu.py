"""Label speed on a GPU: every row against every image, beside the card's matrix rate. No Ray.

    python benchmarks/labels_gpu.py [--images 1048576] [--size 512] [--rows N] [--shapes]
    python benchmarks/labels_gpu.py --device cpu --images 4000    # does the script work?

Synthetic embeddings are made on the device: identities of 1 to 600 images, 68 on average, some
images poor. `plain` counts all similarities, `tail` those that can matter beyond the two means
(see sdd_ray/core/all_pairs.py). Seconds are of the whole label, from prepared columns to distances
on the host; `counting` is the part that grows with the square of the images. The share is that of
the rate of torch.mm on large square matrices of the same format, measured in the same run. Errors
are against scipy in float64 over all pairs, of some rows.

With --rows only the first rows are labelled, and seconds are scaled up to all of them.
"""

import argparse
import datetime
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from sdd_ray.core import all_pairs_triton
from sdd_ray.core.all_pairs import AllPairsDistances, AllPairsPlan, ColumnBlock, RowTally
from sdd_ray.core.all_pairs_counts import FORMATS, CountedRows, Precision, in_format
from sdd_ray.core.all_pairs_rows import MatedRows, tail_needs
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import EmbeddingSums

MS1MV2_IMAGES = 5_822_653
BLOCK = 65_536
SHAPES = [
    all_pairs_triton.KernelShape(rows, columns, size, warps, stages)
    for rows, columns, size, warps, stages in (
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 4),
        (128, 256, 32, 8, 4),
        (256, 128, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 128, 64, 4, 3),
        (64, 256, 64, 4, 3),
        (128, 128, 32, 8, 2),
    )
]


@dataclass(frozen=True)
class Images:
    """Synthetic embeddings, on the device and on the host."""

    unit: torch.Tensor
    shard: Shard
    sums: EmbeddingSums

    @property
    def codes(self) -> torch.Tensor:
        """(N,) the code of each row's identity, on the device."""
        return torch.tensor(self.shard.identities[self.shard.group], device=self.unit.device)


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return how long work takes, until the device has finished it, and what it returns."""
    finish(device)
    started = time.perf_counter()
    result = work()
    finish(device)
    return time.perf_counter() - started, result


def finish(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def made(num_images: int, size: int, device: str) -> tuple[torch.Tensor, np.ndarray]:
    """Return unit rows sorted by identity and their codes: heavy-tailed identities, some poor."""
    host = np.random.default_rng(0)
    counts = np.clip(host.lognormal(3.8, 1.0, num_images).astype(int), 1, 600)
    codes = np.repeat(np.arange(len(counts)), counts)[:num_images]
    spread = torch.tensor(host.gamma(2.0, 0.45, num_images), dtype=torch.float32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn((int(codes[-1]) + 1, size), generator=generator, device=device)
    unit = torch.empty((num_images, size), device=device)
    for start in range(0, num_images, BLOCK):
        part = slice(start, min(start + BLOCK, num_images))
        noise = torch.randn((part.stop - start, size), generator=generator, device=device)
        rows = centres[torch.tensor(codes[part], device=device)] + spread[part, None] * noise
        rows = rows.double()
        unit[part] = (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)).float()
    return unit, codes


def sums_of(unit: torch.Tensor) -> EmbeddingSums:
    """Return the sums over all images, from the device."""
    total = torch.zeros(unit.shape[1], dtype=torch.float64, device=unit.device)
    second = torch.zeros((unit.shape[1],) * 2, dtype=torch.float64, device=unit.device)
    for start in range(0, len(unit), BLOCK):
        part = unit[start : start + BLOCK].double()
        total += part.sum(dim=0)
        second += part.T @ part
    return EmbeddingSums(len(unit), total.cpu().numpy(), second.cpu().numpy())


def matrix_rates(device: str) -> dict[Precision, float]:
    """Return FLOP/s of torch.mm for each format, on a CPU that of float64 for all of them."""
    side, repeats = (8192, 20) if device != "cpu" else (1024, 5)
    types = {"bf16": torch.bfloat16, "float16": torch.float16}
    rates: dict[Precision, float] = {}
    before = torch.get_float32_matmul_precision()
    for precision in FORMATS:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        dtype = types.get(precision, torch.float32) if device != "cpu" else torch.float64
        left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
        for _ in range(3):
            torch.mm(left, right)
        taken, _ = seconds(
            lambda left=left, right=right: [torch.mm(left, right) for _ in range(repeats)], device
        )
        rates[precision] = repeats * 2 * side**3 / taken
    torch.set_float32_matmul_precision(before)
    return rates


def labelled(
    images: Images, plan: AllPairsPlan, columns: list[ColumnBlock], num_rows: int
) -> tuple[AllPairsDistances, float, float]:
    """Return the labels of the first rows, the seconds they took, and those of counting."""
    parts, total, counting = [], 0.0, 0.0
    at_once = plan.rows_at_once(len(images.unit))
    for start in range(0, num_rows, at_once):
        rows = range(start, min(start + at_once, num_rows))
        before, tally = seconds(
            lambda rows=rows: RowTally(images.shard, plan, rows, images.sums), plan.device
        )
        during, _ = seconds(
            lambda tally=tally: [tally.add(block) for block in columns], plan.device
        )
        after, part = seconds(tally.finish, plan.device)
        parts.append(part)
        total += before + during + after
        counting += during
    return AllPairsDistances.joined(parts), total, counting


def by_scipy(images: Images, rows: np.ndarray) -> np.ndarray:
    """Return the distances of some rows over all pairs, in float64."""
    codes = images.shard.identities[images.shard.group]
    found = []
    for row in rows:
        own = images.unit[int(row)].double()
        parts = [part.double() @ own for part in images.unit.split(BLOCK)]
        similarity = torch.cat(parts).cpu().numpy()
        is_mated = codes == codes[row]
        is_nonmated = ~is_mated
        is_mated[row] = False
        found.append(wasserstein_distance(similarity[is_mated], similarity[is_nonmated]))
    return np.array(found)


def closed_form(images: Images, device: str) -> tuple[float, float]:
    """Return the seconds of the sums over all images, and of means, Gram and certificate."""
    summing, _ = seconds(lambda: sums_of(images.unit), device)
    at_once = AllPairsPlan(device=device).rows_at_once(len(images.unit))

    def certify() -> None:
        for start in range(0, len(images.unit), at_once):
            stop = min(start + at_once, len(images.unit))
            rows = MatedRows(images.shard, range(start, stop), device)
            tail_needs(rows, images.sums, 1e-3)

    return summing, seconds(certify, device)[0]


def compare_shapes(images: Images, rates: dict[Precision, float], bins: int) -> None:
    """Print how fast the kernel is, with nothing to count, for several ways to cut its work."""
    group = torch.zeros(len(images.unit), dtype=torch.int32, device=images.unit.device)
    some = images.unit[: min(32_768, len(images.unit))]
    print(
        "\n| kernel shape, nothing to count | format | TFLOP/s | share of torch.mm |\n"
        "|---|---|---|---|"
    )
    for precision in ("bf16", "float16", "tf32", "float32"):
        columns = in_format(images.unit[: 16 * BLOCK], precision)
        rows = CountedRows(
            in_format(some, precision),
            group[: len(some)],
            torch.full_like(group[: len(some)], bins),
            torch.zeros((len(some), bins), dtype=torch.int32, device=group.device),
        )
        for shape in SHAPES:

            def work(
                rows: CountedRows = rows,
                columns: torch.Tensor = columns,
                precision: Precision = precision,
                shape: all_pairs_triton.KernelShape = shape,
            ) -> None:
                all_pairs_triton.count(rows, columns, group[: len(columns)], precision, shape)

            try:
                work()
            except Exception as error:  # noqa: BLE001 - a shape may not fit a card, in many ways
                print(f"| {shape} | {precision} | {type(error).__name__} | |")
                continue
            taken, _ = seconds(work, str(images.unit.device))
            rate = 2 * images.unit.shape[1] * len(some) * len(columns) / taken
            print(
                f"| {shape} | {precision} | {rate / 1e12:.1f} | {rate / rates[precision]:.2f} |",
                flush=True,
            )


def header(device: str) -> str:
    """Return date, hardware and versions."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if all_pairs_triton.HAS_TRITON:
        import triton

        versions += f", triton {triton.__version__}"
    if device == "cpu":
        hardware = (
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        )
    else:
        card = torch.cuda.get_device_properties(device)
        hardware = (
            f"one {card.name}, {card.multi_processor_count} multiprocessors, "
            f"{card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )
    return f"{datetime.datetime.now(datetime.timezone.utc):%d %B %Y}: {hardware}; {versions}."


def compare_methods(images: Images, rates: dict[Precision, float], options: Any) -> None:
    """Print a row for each method and format."""
    num_images, size = images.unit.shape
    num_rows = min(options.rows or num_images, num_images)
    has_mate = np.diff(images.shard.starts)[images.shard.group[:num_rows]] > 1
    drawn = np.random.default_rng(1).permutation(np.flatnonzero(has_mate))[: options.subset]
    expected = by_scipy(images, drawn)
    print(
        f"\n{num_images:,} images of {len(images.shard.identities):,} identities, {size} numbers "
        f"each, {num_rows:,} rows labelled, {options.bins:,} bins, tolerance {options.tolerance}; "
        f"errors of {len(drawn)} rows.\n"
    )
    print(
        "| method | s | of it counting | pairs/s | share of torch.mm | counting's share "
        "| worst error | worst bound | held | 5,822,653 images, s |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for precision in options.formats:
        for tail_only in (True, False):
            plan = AllPairsPlan(
                precision, options.bins, tail_only, options.tolerance, options.device
            )
            columns = [
                ColumnBlock.of(unit, codes, plan)
                for unit, codes in zip(
                    images.unit.split(BLOCK), images.codes.split(BLOCK), strict=True
                )
            ]
            labelled(images, plan, columns, min(1024, num_rows))  # compiles the kernel
            labels, total, counting = labelled(images, plan, columns, num_rows)
            error = np.abs(labels.distance[drawn] - expected)
            bound = labels.error_bound[drawn]
            scale = num_images / num_rows
            rate = 2 * size * num_rows * num_images / rates[precision]
            more = MS1MV2_IMAGES / num_images
            whole = scale * (counting * more**2 + (total - counting) * more)
            print(
                f"| {'tail' if tail_only else 'plain'} {precision} | {scale * total:.2f} "
                f"| {scale * counting:.2f} | {num_rows * num_images / total:.3g} "
                f"| {rate / total:.2f} | {rate / counting:.2f} | {error.max():.1e} "
                f"| {bound.max():.1e} | {'yes' if (error <= bound + 1e-6).all() else 'NO'} "
                f"| {whole:.0f} |",
                flush=True,
            )
            del columns


def main() -> None:
    """Print date, hardware, the card's rates, and a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_048_576)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rows", type=int, help="rows to label; by default all")
    parser.add_argument("--bins", type=int, default=4096)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--subset", type=int, default=64, help="rows whose errors are looked at")
    parser.add_argument("--formats", nargs="*", choices=[*FORMATS], default=[*FORMATS][::-1])
    parser.add_argument("--shapes", action="store_true", help="compare ways to cut the kernel")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, torch finds none; --device cpu tries the script without")
    print(header(options.device))
    making, (unit, codes) = seconds(
        lambda: made(options.images, options.size, options.device), options.device
    )
    images = Images(unit, Shard.of(unit.cpu().numpy(), codes), sums_of(unit))
    print(f"Made {len(unit):,} embeddings in {making:.1f} s.")
    rates = matrix_rates(options.device)
    named = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    print(f"torch.mm, TFLOP/s: {named}" + " (float64)" * (options.device == "cpu") + ".")
    summing, certifying = closed_form(images, options.device)
    print(
        f"Closed form: sums of all images {summing:.2f} s, then means, Gram and certificate "
        f"{certifying:.2f} s; for {MS1MV2_IMAGES:,} images "
        f"{(summing + certifying) * MS1MV2_IMAGES / len(unit):.0f} s."
    )
    compare_methods(images, rates, options)
    if options.shapes:
        if options.device == "cpu" or not all_pairs_triton.HAS_TRITON:
            sys.exit("expected a CUDA device and Triton for --shapes")
        compare_shapes(images, rates, options.bins)


if __name__ == "__main__":
    main()
