"""Command: the whole road on drawn faces. See `sdd_ray.settings.DemoConfig`.

    python -m sdd_ray.demo [dotted.key=value ...]

Draws faces of known quality, embeds, labels, trains, scores and evaluates on identities never
trained on. No GPU, no download and no data are needed. Every stage is the ordinary command with a
configuration of its own, kept in its manifest; what is finished is not done again.
"""

import sys

from sdd_ray import embed, evaluate, label, score, train
from sdd_ray.config import main
from sdd_ray.errors import ConfigError
from sdd_ray.settings import (
    ComparisonsConfig,
    DemoConfig,
    EmbedConfig,
    EvaluateConfig,
    LabelConfig,
    MethodConfig,
    ReportConfig,
    ScoreConfig,
    SourceConfig,
    SplitConfig,
    TrainConfig,
)

_FMR = (1e-2, 1e-3)


def run(config: DemoConfig) -> None:
    """Run all stages into one folder and print what came out.

    Raises:
        ConfigError: The faces held out are too few to evaluate on.
        SddError: The output or the cluster is not as it should be.
    """
    _check_size(config)

    from sdd_ray.engine.session import session
    from sdd_ray.store.location import Location, output_location
    from sdd_ray.synthetic.truth import label_ranks_severity, write_severity

    folder = output_location(config.output)
    embeddings, labels, model, qualities, evaluation, severity = (
        (folder / name).uri
        for name in (
            "embeddings",
            "labels",
            "model",
            "qualities",
            "evaluation",
            "severity.parquet",
        )
    )
    source = SourceConfig(kind="synthetic", synthetic=config.synthetic)
    with session(config.ray):
        embed.run(EmbedConfig(output=embeddings, source=source, images_per_shard=256))
        label.run(LabelConfig(embeddings=embeddings, output=labels))
        split = SplitConfig(holdout_share=config.holdout_share, validation_share=0.15)
        train.run(
            TrainConfig(
                labels=labels,
                output=model,
                source=source,
                optimiser=config.optimiser,
                split=split,
                best="spearman",
            )
        )
        score.run(ScoreConfig(model=model, output=qualities, source=source, images_per_shard=256))
        write_severity(config.synthetic, Location(severity))
        evaluate.run(
            EvaluateConfig(
                embeddings=embeddings,
                output=evaluation,
                methods=(
                    MethodConfig(name="model", path=qualities, column="raw"),
                    MethodConfig(name="labels", path=labels, column="pseudo_label", kind="label"),
                    MethodConfig(
                        name="known severity",
                        path=severity,
                        column="severity",
                        kind="severity",
                        sign=-1,
                    ),
                    MethodConfig(
                        name="embedding norm", path=embeddings, column="norm", kind="norm"
                    ),
                ),
                fmr=_FMR,
                comparisons=ComparisonsConfig(splits=f"{model}/splits.parquet"),
                report=ReportConfig(labels=labels, faces=source, severity=severity),
            )
        )
    sys.stdout.write(label_ranks_severity(labels, severity) + "\n")


def _check_size(config: DemoConfig) -> None:
    """Check before minutes of work that the faces held out make enough comparisons."""
    faces = config.synthetic
    people = max(round(config.holdout_share * faces.num_identities), 1)
    images = people * faces.images_per_identity
    nonmated = images * (images - faces.images_per_identity) // 2
    if nonmated * min(_FMR) < 1:
        raise ConfigError(
            f"synthetic, holdout_share: {images:,} images of {people} people are held out and make"
            f" {nonmated:,} nonmated comparisons; a false match rate of {min(_FMR):g} needs"
            f" {1 / min(_FMR):,.0f}: draw more faces or hold more out"
        )


if __name__ == "__main__":
    sys.exit(main(DemoConfig, run))
