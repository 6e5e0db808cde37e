"""Assess all methods of an evaluation on Ray, and again in every draw of its people."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    stacked,
    subject_draw,
    weigh,
)
from sdd_ray.core.templates import template_qualities
from sdd_ray.engine.evaluating import ComparedSet
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.qualities import Qualities, read_qualities
from sdd_ray.errors import InputError
from sdd_ray.report.curves import CurveKind
from sdd_ray.settings import EvaluateConfig, MethodConfig

RANDOM: Literal["random"] = "random"
_DRAWS_PER_TASK = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method is worth.

    Attributes:
        name: Name of the method.
        kind: What its values are, see `sdd_ray.settings.MethodConfig`, or random.
        read: The quality of each image, and how many have none.
        assessments: One for each false match rate.
        draws: Its figures in every draw of the people, (B, ...); None of random, whose expectation
            is known, and where nothing was drawn.
    """

    name: str
    kind: CurveKind
    read: Qualities
    assessments: list[Assessment]
    draws: DrawnFigures | None = None

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


def evaluate_methods(config: EvaluateConfig, compared: ComparedSet) -> list[MethodResult]:
    """Return what every method is worth, a random one last.

    Raises:
        InputError: The qualities of a method cannot be read, or a false match rate asks for more
            nonmated comparisons than there are.
    """
    _check_rates(config, compared.num_made)
    read = [_read(method, compared) for method in config.methods]
    given = [qualities.values for qualities in read]
    protocol = protocol_of(config)
    sides = ray.put(compared.sides(config.fmr))
    assessments = _assessments(sides, [*([q] for q in given), _random(config, compared)], protocol)
    draws = _draws(config, compared, sides, given, protocol)
    results = [
        MethodResult(method.name, method.kind, qualities, found, drawn)
        for method, qualities, found, drawn in zip(
            config.methods, read, assessments[:-1], draws, strict=True
        )
    ]
    random = Qualities(_random(config, compared)[0], 0, 0, 0)
    results.append(MethodResult(RANDOM, RANDOM, random, assessments[-1]))
    return results


def _read(method: MethodConfig, compared: ComparedSet) -> Qualities:
    """Return the qualities of the images, or those of the templates that they make."""
    members = compared.members
    if members is None:
        return read_qualities(method, compared.image_ids)
    of_images = read_qualities(method, members.image_ids)
    values = template_qualities(of_images.values, members.templates, len(compared.image_ids))
    return Qualities(values, of_images.failed, of_images.missing, of_images.unknown)


def _check_rates(config: EvaluateConfig, made: int) -> None:
    needed = 1.0 / min(config.fmr)
    if made < needed:
        raise InputError(
            f"fmr={min(config.fmr):g} needs at least {needed:,.0f} nonmated comparisons, there are"
            f" {made:,}; ask for a larger fmr or compare more images"
        )


def _random(config: EvaluateConfig, compared: ComparedSet) -> list[Floats]:
    generator = np.random.default_rng([config.comparisons.seed, 0])
    return [generator.random(len(compared.image_ids)) for _ in range(config.random_repeats)]


def _assessments(
    sides: Any, work: Sequence[Sequence[Floats]], protocol: Protocol
) -> list[list[Assessment]]:
    """Return the mean assessment of each method's repeats at each false match rate."""
    task: Any = ray.remote(_assess).options(num_cpus=1, name="assess")
    refs = [[task.remote(sides, qualities, protocol) for qualities in repeats] for repeats in work]
    progress = Progress("evaluate", len(work), unit="methods")
    found = []
    for repeats in refs:
        made = ray.get(repeats)
        if None in made:
            raise InputError(
                "after a discard that spares false matches a threshold lies below the largest"
                " similarities that were kept; ask for smaller fmr, or compare a sample"
                " (comparisons.max_nonmated)"
            )
        by_fmr = zip(*made, strict=True)
        found.append([mean_assessment(parts) for parts in by_fmr])
        progress.update(1)
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
    given: Sequence[Floats],
    protocol: Protocol,
) -> list[DrawnFigures | None]:
    """Return the figures of each method in all draws."""
    draws = config.bootstrap.draws
    if draws == 0:
        return [None] * len(given)
    task: Any = ray.remote(_some_draws).options(num_cpus=1, name="draw people")
    rest = (ray.put(compared.codes), ray.put(list(given)), protocol, config.bootstrap.seed)
    parts = [
        range(start, min(start + _DRAWS_PER_TASK, draws))
        for start in range(0, draws, _DRAWS_PER_TASK)
    ]
    refs = [task.remote(sides, *rest, part) for part in parts]
    progress = Progress("bootstrap", draws, unit="draws")
    found: list[list[DrawnFigures]] = []
    for ref, part in zip(refs, parts, strict=True):
        found += ray.get(ref)
        progress.update(len(part))
    progress.close()
    return [stacked(of_method) for of_method in zip(*found, strict=True)]


def _some_draws(
    sides: ComparedSides,
    subjects: NDArray[np.int64],
    given: Sequence[Floats],
    protocol: Protocol,
    seed: int,
    part: range,
) -> list[list[DrawnFigures]]:
    """Return the figures of every method in some draws."""
    ranked = [rank_sides(sides, qualities, protocol) for qualities in given]
    number = int(subjects.max()) + 1
    found = []
    for draw in part:
        drawn = weigh(sides, subjects, subject_draw(number, seed, draw))
        found.append([drawn_figures(sides, ranks, drawn, protocol) for ranks in ranked])
    return found
