"""Command: qualities to error versus discard curves. See `sdd_ray.settings.EvaluateConfig`.

python -m sdd_ray.evaluate --config configs/evaluate.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Evaluate all methods; write tables, curves, figures and report.html; print the table.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.assessing import evaluate_by
    from sdd_ray.engine.evaluating import ComparedSet
    from sdd_ray.engine.evaluation_output import publish, terminal_table
    from sdd_ray.engine.evaluation_report import REPORT
    from sdd_ray.engine.evaluation_tables import Groups, read_groups
    from sdd_ray.engine.room import pool_size
    from sdd_ray.engine.session import session
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.run import OutputRun

    named = {config.recogniser: config.embeddings}
    named |= {other.name: other.embeddings for other in config.others}
    datasets = {name: open_dataset(uri, ["embed"]) if uri else None for name, uri in named.items()}
    inputs = _inputs(config) | {
        "embeddings" if name == config.recogniser else f"others.{name}": dataset.digest
        for name, dataset in datasets.items()
        if dataset is not None
    }
    output = OutputRun(output_location(config.output), "evaluate", config, inputs)
    groups: list[Groups] = []  # by the images of the first recogniser

    def check(compared: ComparedSet) -> None:
        if config.groups is not None and not groups:
            groups.append(read_groups(config.groups, compared))

    if not output.is_complete:
        with session(config.ray):
            pool_size(None, cpus=1.0, gpus=0.0)  # for tasks, which would wait for ever without any
            evaluations = [
                evaluate_by(name, dataset, config, check) for name, dataset in datasets.items()
            ]
        publish(config, evaluations, groups[0] if groups else None, output)
    sys.stdout.write(terminal_table(output.output) + "\n")
    sys.stdout.write(f"report: {(output.output / REPORT).uri}\n")


def _inputs(config: EvaluateConfig) -> dict[str, str]:
    """Return digests of all files that are read besides the embeddings."""
    from sdd_ray.formats.comparisons import digest_of_comparisons, read_comparisons
    from sdd_ray.store.dataset import content_digest, open_dataset

    chosen = config.comparisons
    read: dict[str, str | None] = {f"methods.{m.name}": m.path for m in config.methods}
    for method in config.methods:
        read |= {f"methods.{method.name}.seeds.{n}": path for n, path in enumerate(method.seeds)}
    read |= {"comparisons.splits": chosen.splits, "comparisons.scored": chosen.scored}
    read |= {"report.labels": config.report.labels, "report.severity": config.report.severity}
    if config.groups is not None:
        read["groups"] = config.groups.path
    if chosen.templates is not None:
        read["comparisons.templates.images"] = chosen.templates.images
        read["comparisons.templates.pairs"] = chosen.templates.pairs
    inputs = {name: content_digest(path) for name, path in read.items() if path is not None}
    if config.report.audit is not None:
        inputs["report.audit"] = open_dataset(config.report.audit, ["audit"]).digest
    if chosen.pairs is not None:
        inputs["comparisons.pairs"] = digest_of_comparisons(read_comparisons(chosen.pairs))
    return inputs


if __name__ == "__main__":
    sys.exit(main(EvaluateConfig, run))
