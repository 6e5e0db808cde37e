"""Command: images and a model to qualities. See `sdd_ray.settings.ScoreConfig`.

python -m sdd_ray.score --config configs/score.yaml [dotted.key=value ...]
python -m sdd_ray.score model=runs/model 'images=[a.jpg, b.jpg]'
find /my/faces -name '*.jpg' | python -m sdd_ray.score model=runs/model --stdin
"""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from sdd_ray.config import main
from sdd_ray.settings import ScoreConfig

if TYPE_CHECKING:
    from sdd_ray.engine.image_worker import ImageJob
    from sdd_ray.store.location import Location
    from sdd_ray.store.model_folder import QualityModel
    from sdd_ray.store.run import PartRecord


def run(config: ScoreConfig) -> None:
    """Score all images of the source; write Parquet parts, a table and the manifest.

    A quality needs no identity, so images that no folder names a person for are scored as well;
    but for the best images of every person, which need it.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    if config.output is None:
        from sdd_ray.score_paths import score_paths

        try:
            score_paths(config, sys.stdin.buffer, sys.stdout.buffer)
        except BrokenPipeError:  # who reads has enough, such as `head`; nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        _score_source(config, config.output)


def _score_source(config: ScoreConfig, uri: str) -> None:
    from sdd_ray.engine.inference import run_image_job
    from sdd_ray.engine.session import session
    from sdd_ray.store.dataset import content_digest, open_dataset
    from sdd_ray.store.location import output_location
    from sdd_ray.store.model_folder import load_model
    from sdd_ray.store.quality import MODEL_WRITERS
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    folder = open_dataset(config.model, MODEL_WRITERS)
    inputs = {"model": folder.digest}
    if config.best is not None and config.best.groups is not None:
        inputs["best.groups"] = content_digest(config.best.groups)
    output = OutputRun(output_location(uri), "score", config, inputs)
    if not output.is_complete:
        model = load_model(folder.location)  # one that cannot be loaded ends here, not on workers
        job = _job(config, folder.location, model)
        with session(config.ray):
            made = run_image_job(job, output)
        results = {"weights_sha256": model.digest, **made.results}
        results |= _write_tables(config, output.output, made.records)
        output.complete(made.records, results, made.listing.rejects)
    say_done(output)


def _job(config: ScoreConfig, folder: "Location", model: "QualityModel") -> "ImageJob":
    from sdd_ray.engine.image_worker import ImageJob
    from sdd_ray.engine.scoring import ScoreStage

    needs_people = config.best is not None and config.best.groups is None
    stage = ScoreStage(
        folder,
        "cuda" if config.resources.gpus_per_worker else "cpu",
        None if config.threshold is None else model.acceptance(config.threshold),
        needs_people,
    )
    source = config.source if needs_people else replace(config.source, identity="none")
    return ImageJob.of("score", stage, source, config)


def _write_tables(
    config: ScoreConfig, output: "Location", records: "list[PartRecord]"
) -> dict[str, int]:
    """Write the table, and the best images; return what the manifest says of them."""
    from sdd_ray.engine.best_images import write_best
    from sdd_ray.store.score_tables import FILES, writer
    from sdd_ray.store.summary import write_tables

    write_tables(output, records, FILES[config.format], writer(config.format))
    if config.best is None:
        return {}
    return {"best_groups": write_best(config.best, output, records)}


if __name__ == "__main__":
    sys.exit(main(ScoreConfig, run))
