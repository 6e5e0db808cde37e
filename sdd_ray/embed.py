"""Command: face images to embeddings. See `sdd_ray.settings.EmbedConfig`.

python -m sdd_ray.embed --config configs/embed.yaml [dotted.key=value ...]
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import EmbedConfig


def run(config: EmbedConfig) -> None:
    """Embed all images of the source; write Parquet parts and the manifest.

    Raises:
        SddError: An input, the output or the cluster is not as it should be.
    """
    from sdd_ray.engine.embedding import EmbedStage
    from sdd_ray.engine.image_worker import ImageJob
    from sdd_ray.engine.inference import run_image_job
    from sdd_ray.engine.session import session
    from sdd_ray.store.location import output_location
    from sdd_ray.store.recogniser import load_recogniser, recogniser_spec
    from sdd_ray.store.run import OutputRun
    from sdd_ray.store.summary import say_done

    device = "cuda" if config.resources.gpus_per_worker else "cpu"
    spec = recogniser_spec(config.recogniser)
    description = load_recogniser(spec).describe()
    output = OutputRun(
        output_location(config.output),
        "embed",
        config,
        {"recogniser_weights": description["weights_sha256"]},
    )
    if not output.is_complete:
        stage = EmbedStage(spec, config.storage, device)
        job = ImageJob.of("embed", stage, config.source, config)
        with session(config.ray):
            made = run_image_job(job, output)
        results = {"recogniser": description, **made.results}
        output.complete(made.records, results, made.listing.rejects)
    say_done(output)


if __name__ == "__main__":
    sys.exit(main(EmbedConfig, run))
