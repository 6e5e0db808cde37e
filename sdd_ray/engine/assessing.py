"""Assess all methods of an evaluation on Ray, and again in every draw of its people."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from sdd_ray.core.assessment import Assessment, assess, mean_assessment
from sdd_ray.core.discarding import NotDeepEnoughError
from sdd_ray.core.ranked_sides import ComparedSides, Protocol, rank_sides
from sdd_ray.core.resampling import (
    DrawnFigures,
    drawn_figures,
    mean_figures,
    seed_draw,
    stacked,
    subject_draw,
    weigh,
)
from sdd_ray.core.templates import template_qualities
from sdd_ray.engine.evaluating import MOST_KEPT, ComparedSet
from sdd_ray.engine.listed import compare
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.qualities import Qualities, read_qualities
from sdd_ray.engine.tasks import on_fetched, run_tasks
from sdd_ray.errors import InputError
from sdd_ray.report.curves import CurveKind
from sdd_ray.settings import EvaluateConfig, MethodConfig
from sdd_ray.store.dataset import Dataset

RANDOM: Literal["random"] = "random"
_DRAWS_PER_TASK = 10
_SPARE_IN_DRAWS = 1.5
"""Times as deep as those of all people may thresholds of drawn people lie."""
_DEEPER = 4
"""Times as many similarities are kept after too few were."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method is worth.

    Attributes:
        name: Name of the method.
        kind: What its values are, see `sdd_ray.settings.MethodConfig`, or random.
        read: The quality of each image, and how many have none; of several seeds, the first.
        assessments: One for each false match rate; of several seeds, the means.
        draws: Its figures in every draw of the people, (B, ...); None of random, whose expectation
            is known, and where nothing was drawn.
    """

    name: str
    kind: CurveKind
    read: Qualities
    assessments: list[Assessment]
    draws: DrawnFigures | None = None
    by_seed: tuple[list[Assessment], ...] = ()
    """The assessments of each seed."""

    @property
    def qualities(self) -> Floats:
        """(N,) quality of each image, larger is better, NaN where it failed."""
        return self.read.values


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What all methods are worth by one recogniser.

    Attributes:
        recogniser: Its name.
        compared: Its comparisons.
        methods: Of the configuration in order, then random.
    """

    recogniser: str
    compared: ComparedSet
    methods: list[MethodResult]


def protocol_of(config: EvaluateConfig) -> Protocol:
    """Return what is computed; the headline limit comes first."""
    limits = (config.discard_limit, *config.more_limits)
    return Protocol(
        config.fmr,
        tuple(dict.fromkeys(limits)),
        config.discard_fractions,
        config.pair_quality,
        config.discarded,
        config.advice.discard,
        config.advice.fnmr,
    )


def read_methods(
    config: EvaluateConfig, compared: ComparedSet
) -> tuple[ComparedSet, list[list[Qualities]]]:
    """Return the comparisons to assess by, and the qualities of each seed of each method.

    Raises:
        InputError: The qualities of a method cannot be read, or too few images have one.
    """
    read = [
        [_read(replace(method, path=path), compared) for path in (method.path, *method.seeds)]
        for method in config.methods
    ]
    if config.failures == "discarded_first":
        return compared, read
    unknown = [np.isnan(seed.values) for method in read for seed in method]
    kept = ~np.logical_or.reduce(unknown)
    counts = {**compared.counts, "left out, without a quality": int(np.count_nonzero(~kept))}
    fewer = replace(compared.among(kept), counts=counts)
    return fewer, [[replace(seed, values=seed.values[kept]) for seed in m] for m in read]


def evaluate_by(
    name: str,
    dataset: Dataset | None,
    config: EvaluateConfig,
    check: Callable[[ComparedSet], None],
) -> Evaluation:
    """Return what all methods are worth by one recogniser.

    Compares again, and keeps more of the largest similarities, where a threshold lies below them.

    Args:
        name: Of the recogniser.
        dataset: Its embeddings; None where a list has the similarities.
        config: The evaluation.
        check: Called with the comparisons before they are assessed; its errors end the work.

    Raises:
        InputError: An input is not as it should be, or memory does not hold all that is needed.
    """
    depth = 1
    while True:
        everything = compare(dataset, config.comparisons, config.fmr, depth)
        compared, read = read_methods(config, everything)
        check(compared)
        try:
            return Evaluation(name, compared, evaluate_methods(config, compared, read))
        except NotDeepEnoughError:
            assert everything.top is not None  # noqa: S101 - else all similarities are at hand
            kept = len(everything.top.sorted)
            if kept > MOST_KEPT / 2:
                raise InputError(
                    f"after a discard a threshold lies below the {kept:,} largest nonmated"
                    " similarities, and not many more fit in memory; compare a sample"
                    " (comparisons.max_nonmated), or ask for a smaller fmr"
                ) from None
            sys.stderr.write(
                f"evaluate: a threshold lies below the {kept:,} largest nonmated similarities;"
                f" comparing again, to keep {_DEEPER} times as many\n"
            )
            depth *= _DEEPER


def evaluate_methods(
    config: EvaluateConfig, compared: ComparedSet, read: Sequence[Sequence[Qualities]]
) -> list[MethodResult]:
    """Return what every method is worth, a random one last.

    Args:
        config: The evaluation.
        compared: The comparisons of `read_methods`.
        read: Its qualities.

    Raises:
        InputError: A false match rate asks for more nonmated comparisons than there are.
        NotDeepEnoughError: More of the largest nonmated similarities are needed than were kept.
    """
    _check_rates(config, compared)
    given = [[seed.values for seed in method] for method in read]
    protocol = protocol_of(config)
    sides = compared.sides(config.fmr)
    held = ray.put(sides)
    *seeds, of_random = _assessments(held, [*given, _random(config, compared)], protocol)
    given_figures = [figure for of_method in seeds for seed in of_method for figure in seed]
    least = _needed_in_draws(sides, given_figures) if config.bootstrap.draws else 0
    if least > len(sides.top.sorted):
        if compared.top is not None:
            raise NotDeepEnoughError
        held = ray.put(compared.sides(config.fmr, least))
    draws = _draws(config, compared, held, given, protocol)
    results = [
        MethodResult(method.name, method.kind, _together(qualities), _means(found), drawn, found)
        for method, qualities, found, drawn in zip(config.methods, read, seeds, draws, strict=True)
    ]
    random = Qualities(_random(config, compared)[0], 0, 0, 0)
    results.append(MethodResult(RANDOM, RANDOM, random, _means(of_random)))
    return results


def _needed_in_draws(sides: ComparedSides, found: Sequence[Assessment]) -> int:
    """Return how many of the largest nonmated similarities thresholds of draws may lie among."""
    lowest = np.fmin.reduce([assessment.lowest for assessment in found])
    top = sides.top
    above = np.count_nonzero((top.sorted if top.all is None else top.all) > lowest)
    return min(math.ceil(_SPARE_IN_DRAWS * above), top.size)


def _together(seeds: Sequence[Qualities]) -> Qualities:
    """Return the first seed with the counts of all."""
    counts = {n: sum(getattr(seed, n) for seed in seeds) for n in ("failed", "missing", "unknown")}
    return replace(seeds[0], **counts)


def _means(seeds: Sequence[list[Assessment]]) -> list[Assessment]:
    return [mean_assessment(of_rate) for of_rate in zip(*seeds, strict=True)]


def _read(method: MethodConfig, compared: ComparedSet) -> Qualities:
    """Return the qualities of the images, or those of the templates that they make."""
    members = compared.members
    if members is None:
        return read_qualities(method, compared.image_ids)
    of_images = read_qualities(method, members.image_ids)
    values = template_qualities(of_images.values, members.templates, len(compared.image_ids))
    return replace(of_images, values=values)


def _check_rates(config: EvaluateConfig, compared: ComparedSet) -> None:
    needed, made = 1.0 / min(config.fmr), compared.num_made
    if made >= needed:
        return
    remedy = "compare more images"
    if compared.num_nonmated >= needed:
        remedy = (
            f"make more of the {compared.num_nonmated:,} that there are (comparisons.max_nonmated)"
        )
    raise InputError(
        f"fmr={min(config.fmr):g} needs at least {needed:,.0f} nonmated comparisons, {made:,} are"
        f" made; ask for a larger fmr or {remedy}"
    )


def _random(config: EvaluateConfig, compared: ComparedSet) -> list[Floats]:
    generator = np.random.default_rng([config.comparisons.seed, 0])
    return [generator.random(len(compared.image_ids)) for _ in range(config.random_repeats)]


def _assessments(
    sides: Any, work: Sequence[Sequence[Floats]], protocol: Protocol
) -> list[tuple[list[Assessment], ...]]:
    """Return the assessments of each method's repeats, each at all false match rates."""
    task: Any = ray.remote(on_fetched).options(num_cpus=1, name="assess")
    calls = (
        (partial(task.remote, _assess, [sides], qualities, protocol), number)
        for number, repeats in enumerate(work)
        for qualities in repeats
    )
    progress = Progress("evaluate", len(work), unit="methods")
    found: list[tuple[list[Assessment], ...]] = [() for _ in work]
    for made, number in run_tasks(calls):
        if made is None:
            raise NotDeepEnoughError
        found[number] += (made,)
        progress.update(int(len(found[number]) == len(work[number])))
    progress.close()
    return found


def _assess(sides: ComparedSides, qualities: Floats, protocol: Protocol) -> list[Assessment] | None:
    """Return what a quality is worth, or None if more of the largest similarities are needed."""
    try:
        return assess(sides, qualities, protocol)
    except NotDeepEnoughError:
        return None


def _draws(
    config: EvaluateConfig,
    compared: ComparedSet,
    sides: Any,
    given: Sequence[Sequence[Floats]],
    protocol: Protocol,
) -> list[DrawnFigures | None]:
    """Return the figures of each method in all draws."""
    draws = config.bootstrap.draws
    if draws == 0:
        return [None] * len(given)
    task: Any = ray.remote(on_fetched).options(num_cpus=1, name="draw people")
    named = {m.name: qualities for m, qualities in zip(config.methods, given, strict=True)}
    held = [sides, ray.put(compared.codes), ray.put(named)]
    rest = (protocol, config.bootstrap.seed)
    parts = [
        range(start, min(start + _DRAWS_PER_TASK, draws))
        for start in range(0, draws, _DRAWS_PER_TASK)
    ]
    calls = ((partial(task.remote, _some_draws, held, *rest, part), part) for part in parts)
    progress = Progress("bootstrap", draws, unit="draws")
    found: list[list[DrawnFigures]] = []
    for figures, part in run_tasks(calls):
        found += figures
        progress.update(len(part))
    progress.close()
    return [stacked(of_method) for of_method in zip(*found, strict=True)]


def _some_draws(
    sides: ComparedSides,
    subjects: NDArray[np.int64],
    given: Mapping[str, Sequence[Floats]],
    protocol: Protocol,
    seed: int,
    part: range,
) -> list[list[DrawnFigures]]:
    """Return the figures of every method in some draws, over the seeds that each draw has."""
    ranked = {
        name: [rank_sides(sides, qualities, protocol) for qualities in seeds]
        for name, seeds in given.items()
    }
    number = int(subjects.max()) + 1
    found = []
    for draw in part:
        drawn = weigh(sides, subjects, subject_draw(number, seed, draw))
        of_draw = []
        for name, seeds in ranked.items():
            chosen = seed_draw(len(seeds), seed, draw, name).tolist()
            made = {n: drawn_figures(sides, seeds[n], drawn, protocol) for n in set(chosen)}
            of_draw.append(mean_figures([made[n] for n in chosen]))
        found.append(of_draw)
    return found
