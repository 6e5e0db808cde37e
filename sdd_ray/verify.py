"""Command: embeddings and known comparisons to accuracy. See `sdd_ray.settings.VerifyConfig`.

python -m sdd_ray.verify --config configs/verify.yaml [dotted.key=value ...]

It tells whether a recogniser and its preprocessing work as they should: on LFW, CFP or any list of
comparisons, before millions of images are embedded and labelled with it.
"""

import sys

from sdd_ray.config import main
from sdd_ray.settings import VerifyConfig


def run(config: VerifyConfig) -> None:
    """Compare, and print the figures; with an output, also write the similarities.

    Raises:
        SddError: An input or the output is not as it should be.
    """
    from sdd_ray.engine.verifying import compare, figures, figures_text, publish
    from sdd_ray.formats.comparisons import digest_of_comparisons, read_comparisons
    from sdd_ray.store.dataset import open_dataset, read_json
    from sdd_ray.store.location import output_location
    from sdd_ray.store.run import MANIFEST, OutputRun

    embeddings = open_dataset(config.embeddings, ["embed"])
    comparisons = read_comparisons(config.pairs)
    if config.output is None:
        results = figures(compare(embeddings, comparisons), config.fmr)
    else:
        inputs = {"embeddings": embeddings.digest, "pairs": digest_of_comparisons(comparisons)}
        output = OutputRun(output_location(config.output), "verify", config, inputs)
        if not output.is_complete:
            publish(compare(embeddings, comparisons), config.fmr, output)
        results = read_json(output.output / MANIFEST)["results"]
    sys.stdout.write(figures_text(results) + "\n")


if __name__ == "__main__":
    sys.exit(main(VerifyConfig, run))
