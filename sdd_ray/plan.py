"""Command: from measured runs to what a larger one will take. See `sdd_ray.settings.PlanConfig`.

python -m sdd_ray.plan images=5822653 workers=8 'measured=[{path: runs/embeddings}]'
"""

import sys
from typing import TYPE_CHECKING

from sdd_ray.config import main
from sdd_ray.settings import PlanConfig

if TYPE_CHECKING:
    from sdd_ray.core.planning import StagePlan
    from sdd_ray.store.measured import StageRun

_COPIES_READ = 2.0
"""Times that label reads the embeddings: for the sums, and for the labels."""


def run(config: PlanConfig) -> None:
    """Print a table with one line a stage, and the sums.

    Raises:
        ConfigError: A stage is both measured and given a rate.
        SddError: A measured output is not there, or does not say what is needed.
    """
    from sdd_ray.core.planning import plan_stage
    from sdd_ray.store.measured import STAGES

    found = _runs(config)
    nodes = -(-config.workers // config.workers_per_node)
    bandwidth = None if config.node_mb_per_s is None else 1e6 * config.node_mb_per_s * nodes
    row_bytes = max((r.run.bytes_per_row for r in found.get("embed", [])), default=0.0)
    plans = {}
    for stage in (stage for stage in STAGES if stage in found):
        runs = [one.run for one in found[stage]]
        measured_epochs = max(one.epochs or 1 for one in found[stage])
        epochs = config.epochs or measured_epochs if stage == "train" else 1
        read = _COPIES_READ * row_bytes if stage == "label" else float(config.image_bytes)
        plans[stage] = plan_stage(runs, config.images * epochs, config.workers, read, bandwidth)
    sys.stdout.write(_table(config, plans, nodes) + "\n")


def _runs(config: PlanConfig) -> "dict[str, list[StageRun]]":
    """Return what is known of each stage."""
    from sdd_ray.core.planning import run_at
    from sdd_ray.errors import ConfigError
    from sdd_ray.store.measured import StageRun, measured_run

    found: dict[str, list[StageRun]] = {}
    for measured in config.measured:
        one = measured_run(measured)
        found.setdefault(one.stage, []).append(one)
    for rate in config.rates:
        if rate.stage in found:
            raise ConfigError(f"rates: {rate.stage} is measured; leave out one or the other")
        run = run_at(rate.images_per_s, rate.start_s, rate.bytes_per_image)
        found[rate.stage] = [StageRun(rate.stage, run)]
    return found


def _table(config: PlanConfig, plans: "dict[str, StagePlan]", nodes: int) -> str:
    from sdd_ray.engine.progress import clock

    given = {rate.stage for rate in config.rates}
    lines = [
        f"{config.images:,} images, {config.workers:,} workers on {nodes:,} machines",
        "",
        f"{'':<9}{'time':>15}{'images/s':>10}{'worker h':>10}{'GPU h':>8}{'read GB':>9}"
        f"{'write GB':>9}{'driver GiB':>11}{'worker GiB':>11}  bottleneck",
    ]
    for stage, plan in plans.items():
        driver = "?" if plan.is_extrapolated else f"{plan.driver_gib:.1f}"
        worker = "?" if stage in given else f"{plan.worker_gib:.1f}"
        mark = " +" if stage in given else " *" if plan.is_extrapolated else ""
        lines.append(
            f"{stage:<9}{clock(3600 * plan.hours):>15}{plan.rate * config.workers:>10,.0f}"
            f"{plan.worker_hours:>10,.1f}{plan.worker_hours * config.gpus_per_worker:>8,.1f}"
            f"{plan.read_gb:>9,.1f}{plan.written_gb:>9,.1f}{driver:>11}"
            f"{worker:>11}  {plan.bottleneck}{mark}"
        )
    hours = sum(plan.hours for plan in plans.values())
    gpu_hours = hours * config.workers * config.gpus_per_worker
    total = f"in all {clock(3600 * hours)}, {gpu_hours:,.1f} GPU hours"
    if config.price_per_node_hour is not None:
        total += f", {hours * nodes * config.price_per_node_hour:,.2f} for the machines"
    lines += ["", total]
    if any(plan.is_extrapolated for stage, plan in plans.items() if stage not in given):
        lines.append(
            "* from runs of one size: what is start and what is work cannot be told apart; measure"
            " a run several times as large"
        )
    if given:
        lines.append("+ by the rate that was given, which nobody measured here")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(PlanConfig, run))
