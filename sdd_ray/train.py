"""Command: labelled images to a quality model. See `sdd_ray.settings.TrainConfig`.

python -m sdd_ray.train --config configs/train.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import TrainConfig


def run(config: TrainConfig) -> None:
    """Train the model; write the model folder and the manifest.

    Raises:
        SddError: An input, the output or the cluster is not as it should be, or training failed.
    """
    from sdd_ray.engine.session import session
    from sdd_ray.engine.training import check_resources, plan_fit, train_network
    from sdd_ray.engine.training_output import EVENTS_NAME, publish
    from sdd_ray.engine.training_rows import prepare
    from sdd_ray.engine.validation_comparisons import check_comparisons
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.recogniser import load_backbone, recogniser_spec, weights_digest
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    labels = open_dataset(config.labels, ["label"])
    inputs = {
        "labels": labels.digest,
        "recogniser_weights": weights_digest(recogniser_spec(config.recogniser)),
    }
    output = OutputRun(output_location(config.output), "train", config, inputs)
    if not output.is_complete:
        load_backbone(recogniser_spec(config.recogniser))  # weights that do not fit end here
        check_comparisons(config, labels)
        with session(config.ray):
            try:
                check_resources(config)
                data = prepare(config, labels, output.work)
                sys.stderr.write(f"train: {data.summary}\n")
                plan = plan_fit(config, labels, data, "train")
                events = output.output / EVENTS_NAME
                trained = train_network(plan, data, output.work, events)
            finally:
                output.pause()
        publish(config, data, trained, output)
    say_done(output)


if __name__ == "__main__":
    sys.exit(main(TrainConfig, run))
