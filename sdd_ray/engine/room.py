"""What the cluster has room for, and waiting for nodes where it can grow."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from sdd_ray.errors import ResourceError

_TELL_EVERY_S = 10.0

_patience: ContextVar[float] = ContextVar("patience", default=0.0)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let pools wait so many seconds for nodes that they lack; 0: as long as they did before."""
    before = _patience.set(seconds or _patience.get())
    try:
        yield
    finally:
        _patience.reset(before)


def available(resource: str) -> float:
    """Return how much of a resource (CPU, GPU) the whole cluster has."""
    return float(ray.cluster_resources().get(resource, 0.0))


def pool_size(wanted: int | None, cpus: float, gpus: float, spare_cpus: float = 0.0) -> int:
    """Return the number of actors of a pool: as asked, or as many as the cluster has room for.

    Where there is no room for those asked for, or for one, nodes are waited for within `patience`.

    Args:
        wanted: Actors asked for, or None for all that fit.
        cpus: Logical CPUs of each.
        gpus: GPUs of each.
        spare_cpus: Logical CPUs that must stay free for other work of the stage.

    Raises:
        ResourceError: The cluster does not have room for the pool.
    """
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0}
    least = 1 if wanted is None else wanted
    if _fitting(needs, spare_cpus) < least and _patience.get() > 0:
        _wait_for_nodes(needs, least, spare_cpus)
    fits = _fitting(needs, spare_cpus)
    if fits < least:
        asked = " and ".join(f"{need * least:g} {name}" for name, need in needs.items())
        cluster = {"CPU": available("CPU") - spare_cpus, "GPU": available("GPU")}
        has = " and ".join(f"{cluster[name]:g} {name}" for name in needs)
        waited = f" after {_patience.get():g} s" if _patience.get() > 0 else ""
        grows = "" if waited else ", or set ray.wait_for_nodes_s where it grows"
        raise ResourceError(
            f"{least} worker(s) need {asked}, the cluster has {has} to spare{waited};"
            f" lower resources.*, or start a larger cluster{grows}"
        )
    return fits if wanted is None else wanted


def _pieces(cpus: float) -> list[dict[str, float]]:
    """Return CPUs as demands of one at most: as one demand they would have to lie on one node."""
    whole, rest = divmod(cpus, 1.0)
    return [{"CPU": 1.0}] * int(whole) + ([{"CPU": rest}] if rest > 0 else [])


def _fitting(needs: dict[str, float], spare_cpus: float) -> int:
    """Return how many actors fit: on the cluster, and each on one node as a whole."""
    cluster = {"CPU": available("CPU") - spare_cpus, "GPU": available("GPU")}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_nodes = sum(
        min(int(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items())
        for node in nodes
    )
    return min(on_nodes, *(int(cluster[name] / need + 1e-9) for name, need in needs.items()))


def _wait_for_nodes(needs: dict[str, float], count: int, spare_cpus: float) -> None:
    """Ask the cluster's autoscaler for room and wait until it is there, or patience ends.

    The demand is a placement group, which Ray forgets if this driver dies; what
    `ray.autoscaler.sdk.request_resources` asks for would keep machines until somebody takes it
    back.
    """
    began = told = time.monotonic()
    demand = placement_group([*(dict(needs) for _ in range(count)), *_pieces(spare_cpus)])
    try:
        while (spent := time.monotonic() - began) < _patience.get():
            if demand.wait(timeout_seconds=1) or _fitting(needs, spare_cpus) >= count:
                break
            if told == began or time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                sys.stderr.write(
                    f"waiting for nodes: room for {max(0, _fitting(needs, spare_cpus))} of {count}"
                    f" worker(s), {spent:.0f} of {_patience.get():.0f} s\n"
                )
    finally:
        remove_placement_group(demand)
