"""Train the small recogniser of the package on drawn faces, and measure it on others.

    python -m sdd_ray.synthetic.train_recogniser --output DIR

writes `recogniser.safetensors`, and `recogniser.json` with architecture, preprocessing and the
figures measured. It needs no GPU and no data. The people it sees are numbered from
`RECOGNISER_TRAINING_IDENTITY` on, so that the demo and the tests never meet them. Only light
damage is shown in training: the embeddings of badly damaged faces are to be poor.

Shapes: N images, B images of a batch, P people, E numbers in an embedding.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdd_ray.core.models import Architecture, build_backbone
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.errors import ConfigError
from sdd_ray.store.weights import digest, save_weights
from sdd_ray.synthetic.degradations import DEGRADATIONS, degrade
from sdd_ray.synthetic.faces import draw_face
from sdd_ray.synthetic.samples import RECOGNISER_TRAINING_IDENTITY
from sdd_ray.synthetic.verification import measure

WEIGHTS_NAME = "recogniser.safetensors"
DESCRIPTION_NAME = "recogniser.json"
ARCHITECTURE = Architecture(name="mobilefacenet", embedding_size=128, width=0.5)
PREPROCESSING = Preprocessing()

# Scale and margin of the large margin cosine loss. Source: Wang et al., "CosFace", CVPR 2018,
# arXiv:1801.09414; scale and margin are smaller than there because people are few.
_SCALE = 20.0
_MARGIN = 0.25
# The margin grows over this share of the steps: at full size from the start it delays learning.
_MARGIN_GROWTH = 0.7
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 5e-2
# Adam moves a number by about the learning rate: centres must start small to turn within an epoch.
_CENTRE_SPREAD = 0.05
_DAMAGED_SHARE = 0.3
_LARGEST_SEVERITY = 0.35

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan:
    """How the recogniser is trained.

    Attributes:
        num_identities: People drawn for training.
        images_per_identity: Pictures of each.
        epochs: Passes over all pictures.
        batch_size: Pictures in one step.
        seed: Chooses the faces, the first weights, the order and the damage.

    Raises:
        ConfigError: There are no epochs, or fewer pictures than one batch.
    """

    num_identities: int
    images_per_identity: int
    epochs: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a plan without a single step."""
        pictures = self.num_identities * self.images_per_identity
        if self.epochs < 1 or pictures < self.batch_size:
            raise ConfigError(
                f"expected at least one epoch over at least {self.batch_size} pictures, got"
                f" {self.epochs} over {pictures}"
            )


def train(plan: TrainingPlan) -> nn.Module:
    """Return a recogniser trained from scratch, set to evaluation."""
    torch.manual_seed(plan.seed)
    faces = _draw_training_faces(plan)
    people = np.repeat(np.arange(plan.num_identities), plan.images_per_identity)
    network = build_backbone(ARCHITECTURE)
    # Twice as fast on a CPU; torch's stub of `to` does not list this argument alone.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    centres = nn.Parameter(
        _CENTRE_SPREAD * torch.randn(plan.num_identities, ARCHITECTURE.embedding_size)
    )
    steps_per_epoch = len(faces) // plan.batch_size
    num_steps = plan.epochs * steps_per_epoch
    optimiser = torch.optim.AdamW(
        [
            {"params": network.parameters(), "weight_decay": _WEIGHT_DECAY},
            {"params": [centres], "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=_LEARNING_RATE, total_steps=num_steps, pct_start=0.2
    )
    for epoch in range(plan.epochs):
        generator = np.random.default_rng([plan.seed, epoch])
        order = generator.permutation(len(faces))
        losses = []
        for step in range(steps_per_epoch):
            rows = order[step * plan.batch_size : (step + 1) * plan.batch_size]
            images = PREPROCESSING.apply_tensor(torch.from_numpy(_varied(faces[rows], generator)))
            progress = (epoch * steps_per_epoch + step) / num_steps
            margin = _MARGIN * min(1.0, progress / _MARGIN_GROWTH)
            loss = margin_loss(network(images), centres, torch.from_numpy(people[rows]), margin)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        _log.info("epoch %d of %d: loss %.3f", epoch + 1, plan.epochs, np.mean(losses))
    return network.eval()


def margin_loss(embeddings: Tensor, centres: Tensor, people: Tensor, margin: float) -> Tensor:
    """Return the large margin cosine loss: every person's own cosine is lowered by the margin.

    Args:
        embeddings: (B, E), of any length.
        centres: (P, E), one direction for each person.
        people: (B,) numbers of the persons shown.
        margin: In units of cosine similarity.

    Source:
        Wang et al., "CosFace", CVPR 2018, arXiv:1801.09414, eq. 4.
    """
    cosine = nn.functional.normalize(embeddings) @ nn.functional.normalize(centres).T
    own = nn.functional.one_hot(people, len(centres)).to(cosine.dtype)
    return nn.functional.cross_entropy(_SCALE * (cosine - margin * own), people)


def _draw_training_faces(plan: TrainingPlan) -> NDArray[np.uint8]:
    """Return (N, 112, 112, 3) undamaged faces, person by person."""
    start = time.monotonic()
    faces = np.empty((plan.num_identities * plan.images_per_identity, 112, 112, 3), np.uint8)
    for row in range(len(faces)):
        person, index = divmod(row, plan.images_per_identity)
        faces[row] = draw_face(plan.seed, RECOGNISER_TRAINING_IDENTITY + person, index)
    _log.info("drew %d faces in %.0f s", len(faces), time.monotonic() - start)
    return faces


def _varied(images: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return a copy with half of the images mirrored and some lightly damaged."""
    varied = images.copy()
    for row in range(len(varied)):
        mirrored, lot, choice, strength = generator.random(4).tolist()
        if mirrored < 0.5:
            varied[row] = varied[row, :, ::-1].copy()
        if lot < _DAMAGED_SHARE:
            kind = DEGRADATIONS[int(choice * len(DEGRADATIONS))]
            varied[row] = degrade(varied[row], kind, _LARGEST_SEVERITY * strength**2, generator)
    return varied


def _plan(arguments: argparse.Namespace) -> TrainingPlan:
    return TrainingPlan(
        num_identities=arguments.identities,
        images_per_identity=arguments.images_per_identity,
        epochs=arguments.epochs,
        batch_size=32,
        seed=arguments.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the packaged recogniser on drawn faces.")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights and figures")
    parser.add_argument("--identities", type=int, default=1500, help="people to train on")
    parser.add_argument("--images-per-identity", type=int, default=8, help="pictures of each")
    parser.add_argument("--epochs", type=int, default=9, help="passes over all pictures")
    parser.add_argument("--seed", type=int, default=0, help="chooses faces, weights and order")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def main() -> None:
    """Train, measure, and write weights and description; the command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = _parser()
    arguments = parser.parse_args()
    try:
        plan = _plan(arguments)
    except ConfigError as error:
        parser.error(str(error))
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    network = train(plan)
    seconds = math.ceil(time.monotonic() - start)
    weights = arguments.output / WEIGHTS_NAME
    save_weights(weights, network.state_dict())
    description = {
        "architecture": ARCHITECTURE.to_dict(),
        "preprocessing": PREPROCESSING.to_dict(),
        "weights_sha256": digest(weights),
        "record": {"training": asdict(plan), "seconds": seconds, "figures": measure(network)},
    }
    text = json.dumps(description, indent=2)
    (arguments.output / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")
    _log.info("%s", text)


if __name__ == "__main__":
    main()
