"""Command: images to scores that need no training. See `sdd_ray.settings.MeasureConfig`.

python -m sdd_ray.measure --config configs/measure.yaml [dotted.key=value ...]
"""

import sys
from dataclasses import replace

from sdd_ray.config import main
from sdd_ray.settings import MeasureConfig


def run(config: MeasureConfig) -> None:
    """Measure all images of the source; write Parquet parts, measures.csv and the manifest.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.image_worker import ImageJob
    from sdd_ray.engine.inference import run_image_job
    from sdd_ray.engine.measuring import MeasureStage
    from sdd_ray.engine.session import session
    from sdd_ray.store.location import output_location
    from sdd_ray.store.recogniser import load_recogniser, recogniser_spec
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done, write_csv

    spec = recogniser_spec(config.recogniser)
    needed = {"flip", "dropout"} & set(config.measures)
    description = load_recogniser(spec).describe() if needed else {}
    inputs = {"recogniser_weights": description["weights_sha256"]} if needed else {}
    output = OutputRun(output_location(config.output), "measure", config, inputs)
    if not output.is_complete:
        device = "cuda" if config.resources.gpus_per_worker else "cpu"
        stage = MeasureStage(config.measures, spec, config.dropout, device)
        source = replace(config.source, identity="none")
        job = ImageJob.of("measure", stage, source, config)
        with session(config.ray):
            made = run_image_job(job, output)
        write_csv(output.output, made.records, "measures.csv")
        results = {"recogniser": description, **made.results}
        output.complete(made.records, results, made.listing.rejects)
    say_done(output)


if __name__ == "__main__":
    sys.exit(main(MeasureConfig, run))
