"""Command: a model and qualities to a model with another map to 0-100, and with thresholds.

python -m sdd_ray.calibrate --config configs/calibrate.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import CalibrateConfig


def run(config: CalibrateConfig) -> None:
    """Write the new model folder, and print its thresholds.

    Raises:
        SddError: An input or the output is not as it should be.
    """
    from sdd_ray.store.calibrating import calibrated, publish, thresholds_in_words
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.model_folder import load_model
    from sdd_ray.store.quality import MODEL_WRITERS
    from sdd_ray.store.run import OutputRun

    folder = open_dataset(config.model, MODEL_WRITERS)
    inputs = {"model": folder.digest}
    if config.qualities is not None:
        inputs["qualities"] = open_dataset(config.qualities, ["score"]).digest
    if config.evaluation is not None:
        inputs["evaluation"] = open_dataset(config.evaluation, ["evaluate"]).digest
    output = OutputRun(output_location(config.output), "calibrate", config, inputs)
    if not output.is_complete:
        publish(calibrated(config, load_model(folder.location)), folder.location, output)
    sys.stdout.write(thresholds_in_words(load_model(output.output)) + "\n")
    sys.stdout.write(f"calibrate: -> {output.output.uri}\n")


if __name__ == "__main__":
    sys.exit(main(CalibrateConfig, run))
