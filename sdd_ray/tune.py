"""Command: search the training configuration. See `sdd_ray.settings.TuneConfig`.

python -m sdd_ray.tune --config configs/tune.yaml [dotted.key=value ...]
"""

import sys
from typing import TYPE_CHECKING

from sdd_ray.config import main
from sdd_ray.search_space import check_space
from sdd_ray.settings import TuneConfig

if TYPE_CHECKING:
    from sdd_ray.store.location import Location


def run(config: TuneConfig) -> None:
    """Search; write trials.parquet, search.html, best.yaml, the best model and the manifest.

    Raises:
        SddError: An input, the output, the space or the cluster is not as it should be.
    """
    check_space(config)

    from sdd_ray.engine.session import session
    from sdd_ray.engine.training import plan_fit
    from sdd_ray.engine.training_rows import prepare
    from sdd_ray.engine.tuning import Material, check_room, publish, search
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.recogniser import load_backbone, recogniser_spec, weights_digest
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    labels = open_dataset(config.train.labels, ["label"])
    inputs = {
        "labels": labels.digest,
        "recogniser_weights": weights_digest(recogniser_spec(config.train.recogniser)),
    }
    output = OutputRun(output_location(config.output), "tune", config, inputs)
    if not output.is_complete:
        load_backbone(recogniser_spec(config.train.recogniser))  # weights that do not fit end here
        with session(config.ray):
            try:
                check_room(config)
                data = prepare(config.train, labels, output.work)
                sys.stderr.write(f"tune: {data.summary}\n")
                plan = plan_fit(config.train, labels, data, "tune")
                material = Material(plan, data, labels)
                trials = search(config, material, output.work)
            finally:
                output.pause()
        publish(config, trials, material, output)
    say_done(output, "trials")
    _say_where(output.output, config)


def _say_where(output: "Location", config: TuneConfig) -> None:
    """Print the places of what a complete search has to offer."""
    from sdd_ray.engine.tuning import BEST, MODEL, REPORT

    places = {"report": REPORT, "best model": MODEL, "best configuration": BEST}
    if not config.publish:
        del places["best model"]
    lines = [f"{what}: {(output / name).uri}" for what, name in places.items()]
    lines.append(f"  python -m sdd_ray.train --config {(output / BEST).uri}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(TuneConfig, run))
