"""Run all comparisons of an audit, and hold what they found."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import IMAGE_ID, PSEUDO_LABEL
from sdd_ray.engine.audit_search import (
    Context,
    Mixed,
    SamePerson,
    SharedImages,
    Suspects,
    mixed_identities,
    same_person,
    shared_images,
    suspects,
)
from sdd_ray.engine.auditing import (
    AuditedSet,
    Pool,
    check_sample,
    levels_of,
    load,
    pool_of,
    provisional_levels_of,
    survey,
)
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.room import pool_size
from sdd_ray.settings import AuditConfig
from sdd_ray.store.dataset import Dataset, open_dataset
from sdd_ray.store.location import Location

SIGNED_GAP = "signed_gap"


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the audited images, (N,) each; NaN where there is none."""

    pseudo_label: NDArray[np.float32]
    signed_gap: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that an audit found, see the parts."""

    context: Context
    same: SamePerson
    mixed: list[Mixed]
    suspects: Suspects
    shared: SharedImages
    labels: Labels | None
    num_nonmated: int

    def ids(self, rows: NDArray[np.int64]) -> pa.Array:
        """Return the image_ids of images of the set."""
        return self.context.audited.image_ids.take(pa.array(rows))

    def names(self, codes: NDArray[np.int64]) -> pa.Array:
        """Return the names of identities; null for -1."""
        places = pa.array(codes, mask=codes < 0)
        return self.context.audited.names.take(places)


def run_audit_job(
    config: AuditConfig, dataset: Dataset, plan: LabelPlan, work: Location
) -> Findings:
    """Look for everything that the configuration asks for.

    Raises:
        InputError: A file is damaged, or the set is too small for its thresholds.
        TooManyRejectsError: More rows than allowed had to be set aside.
        ResourceError: The cluster has no room for the workers.
    """
    # First of all: without any CPU the tasks that load would wait for ever.
    size = pool_size(config.resources.workers, config.resources.cpus_per_worker, 0.0)
    audited = load(config, dataset, plan, work)
    check_sample(config, audited)
    with pool_of(config, audited.blocks, size) as pool:
        return _find(config, audited, pool)


def _find(config: AuditConfig, audited: AuditedSet, pool: Pool) -> Findings:
    first = provisional_levels_of(config, audited, pool)
    surveyed = survey(config, audited, pool, first)
    context = Context(config, audited, pool, first, surveyed, pool.put(surveyed.identities))
    same = same_person(context)
    trusted = (surveyed.own >= first.match, same.person)
    levels, num_nonmated = levels_of(config, audited, pool, first, trusted)
    context = replace(context, levels=levels)
    mixed = mixed_identities(context)
    return Findings(
        context,
        same,
        mixed,
        suspects(context, same, mixed),
        shared_images(context),
        None if config.labels is None else _labels(config.labels, audited.image_ids),
        num_nonmated,
    )


def _labels(uri: str, image_ids: pa.Array) -> Labels:
    table = open_dataset(uri, ["label"]).read([IMAGE_ID, PSEUDO_LABEL, SIGNED_GAP])
    keys = pc.cast(table[IMAGE_ID], pa.large_string()).combine_chunks()
    place = pc.index_in(image_ids, keys)
    pseudo_label, signed_gap = (
        np.asarray(pc.cast(table[name].take(place), pa.float32()).to_numpy(), np.float32)
        for name in (PSEUDO_LABEL, SIGNED_GAP)
    )
    return Labels(pseudo_label, signed_gap)
