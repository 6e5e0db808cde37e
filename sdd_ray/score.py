"""Command: images and a model to qualities. See `sdd_ray.settings.ScoreConfig`.

python -m sdd_ray.score --config configs/score.yaml [dotted.key=value ...]
"""

import sys
from dataclasses import replace

from sdd_ray.config import main
from sdd_ray.settings import ScoreConfig


def run(config: ScoreConfig) -> None:
    """Score all images of the source; write Parquet parts, qualities.csv and the manifest.

    A quality needs no identity, so images that no folder names a person for are scored as well.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.image_worker import ImageJob
    from sdd_ray.engine.inference import run_image_job
    from sdd_ray.engine.scoring import ScoreStage
    from sdd_ray.engine.session import session
    from sdd_ray.store.dataset import open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.model_folder import load_model
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done, write_csv

    model = open_dataset(config.model, ["train"])
    output = OutputRun(output_location(config.output), "score", config, {"model": model.digest})
    if not output.is_complete:
        load_model(model.location)  # a model that cannot be loaded ends here, not on the workers
        stage = ScoreStage(model.location, "cuda" if config.resources.gpus_per_worker else "cpu")
        source = replace(config.source, identity="none")
        job = ImageJob.of("score", stage, source, config)
        with session(config.ray):
            made = run_image_job(job, output)
        write_csv(output.output, made.records, "qualities.csv")
        output.complete(made.records, made.results, made.listing.rejects)
    say_done(output)


if __name__ == "__main__":
    sys.exit(main(ScoreConfig, run))
