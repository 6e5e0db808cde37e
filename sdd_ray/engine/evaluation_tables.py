"""Tables of an evaluation besides its curves: advice, groups, and how alike the methods are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IDENTITY
from sdd_ray.core.groups import NO_GROUP, GroupFigures, group_figures
from sdd_ray.core.ranked_sides import Protocol, rank_sides
from sdd_ray.core.resampling import Interval, interval
from sdd_ray.core.statistics import rank_correlation
from sdd_ray.engine.assessing import MethodResult
from sdd_ray.engine.evaluating import ComparedSet
from sdd_ray.errors import InputError
from sdd_ray.formats.group_files import read_group_file
from sdd_ray.settings import GroupsConfig

_UNKNOWN = Interval(math.nan, math.nan)


def advice_table(methods: Sequence[MethodResult], protocol: Protocol) -> pa.Table:
    """Return the quality thresholds that are advised, one row for each method, rate and aim."""
    aims = [("discard", most) for most in protocol.advice_discards]
    aims += [("fnmr", most) for most in protocol.advice_fnmrs]
    rows = []
    for method in methods:
        for number, found in enumerate(method.assessments):
            for place, ((kind, asked), advice) in enumerate(zip(aims, found.advice, strict=False)):
                draws = method.draws
                within = _UNKNOWN if draws is None else interval(draws.advice[:, number, place])
                rows.append(
                    {
                        "method": method.name,
                        "fmr": found.fmr,
                        "aim": kind,
                        "asked": asked,
                        "threshold": advice.threshold,
                        "low": within.low,
                        "high": within.high,
                        "discarded": advice.discarded,
                        "fnmr": advice.fnmr,
                    }
                )
    return pa.Table.from_pylist(rows, schema=_ADVICE)


_ADVICE = pa.schema(
    [
        ("method", pa.string()),
        ("fmr", pa.float64()),
        ("aim", pa.string()),
        ("asked", pa.float64()),
        ("threshold", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("discarded", pa.float64()),
        ("fnmr", pa.float64()),
    ]
)


def correlation_table(methods: Sequence[MethodResult]) -> pa.Table:
    """Return Spearman's correlation of each two methods, over the images that both assessed."""
    rows = []
    for place, method in enumerate(methods):
        for other in methods[place + 1 :]:
            known = ~np.isnan(method.qualities) & ~np.isnan(other.qualities)
            value = rank_correlation(method.qualities[known], other.qualities[known])
            pair = {"method": method.name, "other": other.name}
            rows.append({**pair, "images": int(known.sum()), "spearman": value})
    return pa.Table.from_pylist(rows, schema=_CORRELATIONS)


_CORRELATIONS = pa.schema(
    [
        ("method", pa.string()),
        ("other", pa.string()),
        ("images", pa.int64()),
        ("spearman", pa.float64()),
    ]
)


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each compared image.

    Attributes:
        names: G names, sorted.
        of: (N,) number of the group, `NO_GROUP` for none.
    """

    names: list[str]
    of: NDArray[np.int64]


def read_groups(config: GroupsConfig, compared: ComparedSet) -> Groups:
    """Return the groups of the compared images.

    Raises:
        InputError: The file cannot be read, names something twice, or no compared image has a
            group.
    """
    keys, values = read_group_file(config.path, config.key, config.column)
    wanted: Sequence[str | None] = compared.image_ids
    if config.key == IDENTITY:
        if compared.identities is None:
            raise InputError(
                f"{config.path}: the compared images have no identities, see groups.key"
            )
        wanted = compared.identities
    found = values.take(pc.index_in(pa.array(wanted, pa.string()), keys))
    names = pc.unique(found).drop_null()
    names = names.take(pc.sort_indices(names))
    if len(names) == 0:
        raise InputError(f"{config.path}: none of the {len(wanted)} compared images has a group")
    of = pc.fill_null(pc.index_in(found, names), NO_GROUP)
    return Groups(names.to_pylist(), of.to_numpy().astype(np.int64))


def group_table(
    groups: Groups, compared: ComparedSet, methods: Sequence[MethodResult], protocol: Protocol
) -> pa.Table:
    """Return what every method does to every group, one row for each rate and discard fraction."""
    sides = compared.sides(protocol.fmrs)
    fractions = np.union1d([0.0], protocol.fractions)
    rows = []
    for method in methods:
        ranked = rank_sides(sides, method.qualities, protocol)
        for found in method.assessments:
            made = group_figures(sides, ranked, groups.of, found.point.threshold, fractions)
            for name, figures in zip(groups.names, made, strict=True):
                start = {"method": method.name, "fmr": found.fmr, "group": name}
                rows += [start | row for row in _group_rows(figures, fractions)]
    return pa.Table.from_pylist(rows)


def _group_rows(
    figures: GroupFigures, fractions: NDArray[np.float64]
) -> list[dict[str, float | int]]:
    return [
        {
            "images": figures.images,
            "mated": figures.mated,
            "nonmated": figures.nonmated,
            "group_fmr": figures.fmr,
            "discard_fraction": float(fraction),
            "discarded": float(discarded),
            "fnmr": float(fnmr),
        }
        for fraction, discarded, fnmr in zip(
            fractions, figures.discarded, figures.fnmr, strict=True
        )
    ]
