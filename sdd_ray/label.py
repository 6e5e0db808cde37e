"""Command: embeddings to pseudo-labels of quality. See `sdd_ray.settings.LabelConfig`.

python -m sdd_ray.label --config configs/label.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import LabelConfig


def run(config: LabelConfig) -> None:
    """Label all embeddings; write Parquet parts and the manifest.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.label_plan import plan_labels
    from sdd_ray.engine.labelling import run_label_job
    from sdd_ray.engine.session import session
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    embeddings = open_dataset(config.embeddings, ["embed"])
    output = OutputRun(
        output_location(config.output), "label", config, {"embeddings": embeddings.digest}
    )
    if not output.is_complete:
        plan = plan_labels(embeddings, drop_duplicates=config.duplicates == "reject")
        with session(config.ray):
            records, results = run_label_job(config, plan, output)
        output.complete(records, results, plan.rejects)
    say_done(output)


if __name__ == "__main__":
    sys.exit(main(LabelConfig, run))
