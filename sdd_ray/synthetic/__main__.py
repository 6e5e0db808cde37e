"""Command: draw faces into a folder. See `sdd_ray.settings.DrawConfig`.

python -m sdd_ray.synthetic output=faces [synthetic.num_identities=20 ...]
"""

import sys
from pathlib import Path

from sdd_ray.config import main
from sdd_ray.errors import OutputError
from sdd_ray.settings import DrawConfig


def run(config: DrawConfig) -> None:
    """Draw the faces; the folder appears when it is whole.

    Raises:
        OutputError: The folder exists, or cannot be written.
    """
    from sdd_ray.synthetic.samples import write_folder
    from sdd_ray.synthetic.truth import synthetic_set

    if "://" in config.output:
        raise OutputError(f"output={config.output}: faces are drawn into a local folder only")
    write_folder(synthetic_set(config.synthetic), Path(config.output))
    count = config.synthetic.num_identities * config.synthetic.images_per_identity
    sys.stdout.write(f"drew {count:,} faces -> {config.output}\n")


if __name__ == "__main__":
    sys.exit(main(DrawConfig, run))
