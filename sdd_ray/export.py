"""Command: a quality model to one ONNX file with a model card. See `sdd_ray.settings.ExportConfig`.

python -m sdd_ray.export --config configs/export.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import ExportConfig


def run(config: ExportConfig) -> None:
    """Write model.onnx and MODEL_CARD.md, and print how near the file is to the model.

    Raises:
        SddError: An input or the output is not as it should be, or the file computes otherwise.
    """
    from sdd_ray.engine.exporting import export_model, in_words
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.quality import MODEL_WRITERS
    from sdd_ray.store.run import OutputRun

    folder = open_dataset(config.model, MODEL_WRITERS)
    inputs = {"model": folder.digest}
    if config.evaluation is not None:
        inputs["evaluation"] = open_dataset(config.evaluation, ["evaluate"]).digest
    output = OutputRun(output_location(config.output), "export", config, inputs)
    if not output.is_complete:
        export_model(config, folder.location, output)
    sys.stdout.write(in_words(output.output) + "\n")


if __name__ == "__main__":
    sys.exit(main(ExportConfig, run))
