"""Command: search the training configuration. See `sdd_ray.settings.TuneConfig`.

python -m sdd_ray.tune --config configs/tune.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import TuneConfig


def run(config: TuneConfig) -> None:
    """Search; write trials.parquet, best.yaml and the manifest.

    Raises:
        SddError: An input, the output, the space or the cluster is not as it should be.
    """
    from sdd_ray.search_space import check_space

    check_space(config)

    from sdd_ray.engine.session import session
    from sdd_ray.engine.training_data import prepare
    from sdd_ray.engine.tuning import BEST, publish, search
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.recogniser import recogniser_spec, weights_digest
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    labels = open_dataset(config.train.labels, ["label"])
    inputs = {
        "labels": labels.digest,
        "recogniser_weights": weights_digest(recogniser_spec(config.train.recogniser)),
    }
    output = OutputRun(output_location(config.output), "tune", config, inputs)
    if not output.is_complete:
        data = prepare(config.train, labels)
        sys.stderr.write(f"tune: {data.summary}\n")
        with session(config.ray):
            try:
                trials = search(config, data, output.work)
            finally:
                output.pause()
        publish(config, trials, output)
    say_done(output, "trials")
    best = (output.output / BEST).uri
    sys.stdout.write(f"best configuration: {best}\n  python -m sdd_ray.train --config {best}\n")


if __name__ == "__main__":
    sys.exit(main(TuneConfig, run))
