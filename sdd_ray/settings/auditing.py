"""Options of audit: what the similarities betray about the identities of a set."""

from dataclasses import field
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    OpenShare,
    Rate,
    RayConfig,
    Seed,
    Share,
    Text,
)
from sdd_ray.settings.source import SourceConfig

Similarity = Annotated[float, Field(gt=0, lt=1)]
GroupSize = Annotated[int, Field(ge=2)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AuditThresholds:
    """The thresholds of this set and recogniser, found from comparisons of its own images."""

    fmr: Rate = 1e-3
    """Two images match where their similarity is above the threshold that this share of the
    comparisons between different identities exceeds. Images that do not agree with their own
    identity are left out, but not all errors can be: below 1e-4 they would decide it."""
    chance_fmr: Rate = 0.1
    """Similarities below the threshold at this false match rate are at chance: what two people
    reach. Larger than `fmr`."""
    fpir: Rate = 0.01
    """An image is said to belong elsewhere only above the similarity that this share of images
    without fault reaches with their nearest other identity (false positive identification rate)."""
    sample_images: Annotated[int, Field(ge=100, le=10_000)] = 4096
    """Images drawn at random and compared with each other to find the thresholds."""

    def __post_init__(self) -> None:
        if self.chance_fmr <= self.fmr:
            raise ValueError(f"chance_fmr must be above fmr={self.fmr:g}, got {self.chance_fmr:g}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SuspectConfig:
    """Images that may stand under a wrong identity."""

    max_share: Rate = 0.1
    """At most this share of the images, those least similar to their own identity, is compared
    with all other identities."""
    margin: OpenShare = 0.1
    """An image belongs elsewhere only if it is that much more similar to the other identity, and
    fits nowhere only if it is that much less similar to its own than most of its images are."""
    poor_norm_rank: Share = 0.15
    """Where something fits nowhere, embeddings among this share of the shortest are put down to
    poor images rather than to another person. 0: embedding lengths say nothing."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamePersonConfig:
    """Identities that may be one person under several names."""

    likeness: PositiveFloat = 0.7
    """Mean similarity between two identities over the geometric mean of those within them; 1 where
    both show one person."""
    min_images: PositiveInt = 2
    """Identities with fewer images are not compared: too little tells them from look-alikes."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixedConfig:
    """Identities that may hold several people."""

    min_images: GroupSize = 2
    """Distinct images that make a group; near-duplicates count once."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DuplicateConfig:
    """Images that show the same photograph."""

    similarity: Similarity = 0.97
    """Two images are near-duplicates from this similarity on. With a MobileFaceNet, of copies saved
    again as JPEG of quality 75 at least 97 % reach 0.97, and of quality 50 some 60 to 75 %. 0.95
    finds 92 % of the latter, and other pictures of one occasion."""
    exact_images: PositiveInt = 100_000
    """Up to that many images all pairs across identities are compared; above it, candidates found
    by random hyperplanes."""
    recall: Rate = 0.95
    """Share of the pairs at `similarity` that the candidates are to hold, more above it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AuditReportConfig:
    """What audit.html shows; the tables are complete without it."""

    faces: SourceConfig | None = None
    """The images, to show suspects beside images of both identities. Null: none are shown."""
    findings: PositiveInt = 20
    """Findings of each kind that are shown."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AuditResources:
    """Workers of the audit."""

    workers: PositiveInt | None = None
    """Actors in the pool. Null: as many as the cluster has CPUs."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs each actor reserves; its arithmetic runs on one thread."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AuditConfig:
    """Audit the identities of a set of embeddings: tables and audit.html at `output`.

    Memory: all embeddings lie in Ray's object store, which spills to disk. The driver keeps the
    keys, some 60 bytes an image, what is found, and a mean embedding for each identity: of 2
    million identities and 512 numbers 4 GiB, and as much again on every node.
    """

    embeddings: Text
    """Dataset written by embed."""
    output: Text
    """Folder of the results."""
    labels: Text | None = None
    """Dataset written by label, to add its columns and how labels differ between identities.
    Null: everything else is computed from the embeddings alone."""
    thresholds: AuditThresholds = field(default_factory=AuditThresholds)
    suspects: SuspectConfig = field(default_factory=SuspectConfig)
    same_person: SamePersonConfig = field(default_factory=SamePersonConfig)
    mixed: MixedConfig = field(default_factory=MixedConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    images_per_identity: Annotated[int, Field(ge=16)] = 512
    """Of a larger identity that many images, drawn at random, stand for all: the others are
    compared with these. Near-duplicates within an identity are looked for among all."""
    max_findings: PositiveInt = 1_000_000
    """Pairs of identities, and pairs of images across identities, that are kept, the most similar
    ones; how many there are is counted in full."""
    seed: Seed = 0
    """Draws the sample, the images of large identities, and the hyperplanes."""
    report: AuditReportConfig = field(default_factory=AuditReportConfig)
    max_reject_share: Share = 0.05
    """The run stops when more than this share of the rows had to be set aside."""
    resources: AuditResources = field(default_factory=AuditResources)
    ray: RayConfig = field(default_factory=RayConfig)
