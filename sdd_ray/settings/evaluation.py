"""Options of evaluate, of drawing faces, and of the demo."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from sdd_ray.settings.common import (
    STRICT,
    OpenShare,
    Rate,
    RayConfig,
    Seed,
    Text,
)
from sdd_ray.settings.source import SourceConfig, SyntheticConfig
from sdd_ray.settings.training import OptimiserConfig
from sdd_ray.settings.verification import PairsConfig

_LEAST_DRAWS = 100


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodConfig:
    """Quality values to evaluate."""

    name: Text
    """Name in tables and figures."""
    path: Text
    """Dataset with image_id and the values: qualities, labels, embeddings, any Parquet, a .csv or
    .tsv (separated by comma, semicolon or tab), or a .txt of lines `path score`."""
    seeds: tuple[Text, ...] = ()
    """More files like `path`, from other seeds of the same training: figures are means over all,
    and the intervals hold for other seeds too."""
    column: Text = "quality"
    """Column of the values, larger is better. Null and NaN count as failed to assess, and so does
    -1 in a column of integers."""
    key: Text = "image_id"
    """Column that names the image, such as Filename in the tables of OFIQ."""
    root: Text | None = None
    """Folder that the names begin with and image_ids do not: it is taken off."""
    kind: Literal["model", "label", "severity", "norm", "measure", "oracle"] = "model"
    """What the values are; decides how their curve is drawn. A `model` may know the compared images
    from its training, which the report then warns of; a `measure` needs no training."""
    sign: Literal[1, -1] = 1
    """-1 for values of which smaller is better."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TemplatesConfig:
    """Templates of several images, as of IJB-B and IJB-C."""

    images: Text
    """File of lines `image template medium`, such as ijbc_face_tid_mid.txt."""
    pairs: Text
    """File of lines `template template label`, such as ijbc_template_pair_label.txt."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ComparisonsConfig:
    """Which comparisons are made: all of the embeddings, or those of one list.

    A list says which comparisons are mated. People, of whom the intervals are drawn, are the
    identities of the embeddings if all compared images have one, else those that mated comparisons
    connect.
    """

    pairs: PairsConfig | None = None
    """A list of pairs of images, as for verify."""
    templates: TemplatesConfig | None = None
    """A list of pairs of templates. Frames of a medium are averaged, media summed; the quality of a
    template is the mean of those of its images."""
    scored: Text | None = None
    """Parquet or .csv of comparisons with their similarities, of any recogniser: image_id_a,
    image_id_b, mated, similarity. `embeddings` is then left out."""

    splits: Text | None = None
    """splits.parquet of a model folder; only identities of `part` are compared. Null: all."""
    part: Literal["holdout", "validation", "train"] = "holdout"
    """See `splits`."""
    max_nonmated: PositiveInt | None = 5_000_000
    """All mated comparisons are made; of the nonmated ones at most this many, drawn at random.
    Null: all, which are not held at once if they are many."""
    seed: Seed = 0
    """Draws the nonmated comparisons."""

    def __post_init__(self) -> None:
        lists = ("splits", "pairs", "templates", "scored")
        given = [f"comparisons.{name}" for name in lists if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"one list is enough, got {' and '.join(given)}")

    @property
    def is_listed(self) -> bool:
        """Whether a list names the comparisons."""
        return any(given is not None for given in (self.pairs, self.templates, self.scored))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReportConfig:
    """What report.html shows besides curves and tables."""

    labels: Text | None = None
    """Dataset written by label: its histogram, and what two of its images look like inside."""
    audit: Text | None = None
    """Dataset written by audit: what it found, since wrong names make errors that no quality can
    foresee."""
    faces: SourceConfig | None = None
    """The images, to show faces from worst to best. Null: none are shown."""
    severity: Text | None = None
    """Parquet with image_id, kind and severity of known degradations (synthetic data)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BootstrapConfig:
    """How sure the figures are: people are drawn with replacement, and all is computed again."""

    draws: NonNegativeInt = 200
    """Draws; the intervals hold 95 % of them. 0: no intervals, and no method is called better."""
    seed: Seed = 0
    """Draws the people."""

    def __post_init__(self) -> None:
        if 0 < self.draws < _LEAST_DRAWS:
            raise ValueError(
                f"expected at least {_LEAST_DRAWS} draws, or 0, got {self.draws}: the ends of an"
                " interval of fewer are chance"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdviceConfig:
    """Quality thresholds to advise, each with its interval; by the minimum as pair quality only."""

    discard: tuple[OpenShare, ...] = (0.05, 0.1, 0.2)
    """The highest threshold that discards at most these shares of the images."""
    fnmr: tuple[Rate, ...] = (0.1, 0.01)
    """The lowest threshold from which on at most these shares of mated comparisons are missed, at
    the similarity threshold of each `fmr`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GroupsConfig:
    """Groups of people, to see whom a quality discards."""

    path: Text
    """Parquet, .csv or .tsv with one row an image, or one a person."""
    column: Text = "group"
    """Column of the name of the group; null for none."""
    key: Literal["image_id", "identity"] = "image_id"
    """Column that says whose group it is."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OtherRecogniserConfig:
    """Another recogniser, whose errors the same qualities may predict or not."""

    name: Text
    """Name in tables."""
    embeddings: Text
    """Dataset written by embed, of the same images."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Evaluate qualities by error versus discard curves; tables, figures and report at `output`."""

    embeddings: Text | None = None
    """Dataset written by embed: the recogniser whose errors a quality should predict. Needed unless
    `comparisons.scored` is given."""
    recogniser: Text = "own"
    """Name of that recogniser in tables."""
    others: tuple[OtherRecogniserConfig, ...] = ()
    """Other recognisers, by which all is computed as well."""
    output: Text
    """Folder of the results."""
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    """The qualities to compare, as a list; a random one is always added."""
    comparisons: ComparisonsConfig = field(default_factory=ComparisonsConfig)
    fmr: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-2, 1e-3)
    """False match rates at which thresholds are set."""
    discard_fractions: Annotated[tuple[OpenShare, ...], Field(min_length=1)] = (0.0, 0.1, 0.2, 0.3)
    """Columns of the tables, increasing."""
    discard_limit: Rate = 0.3
    """Upper end of the normalised partial area that tables show."""
    more_limits: tuple[Rate, ...] = (0.05, 0.2, 0.95)
    """Further ends of partial areas, for summary.csv."""
    pair_quality: Literal["minimum", "maximum", "mean"] = "minimum"
    """Quality of a comparison from those of its two images. Only by the minimum is a threshold on
    it one on images; the others need `discarded=comparisons`."""
    discarded: Literal["images", "comparisons"] = "images"
    """What the fractions of the EVRC are shares of."""
    failures: Literal["discarded_first", "left_out"] = "discarded_first"
    """Images without a quality leave before all others, or are left out of the evaluation of all
    methods if any has none. They are counted either way."""
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    advice: AdviceConfig = field(default_factory=AdviceConfig)
    groups: GroupsConfig | None = None
    """Groups of people, to see whom a quality discards."""
    random_repeats: PositiveInt = 20
    """Random qualities that are averaged."""
    report: ReportConfig = field(default_factory=ReportConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if (self.embeddings is None) == (self.comparisons.scored is None):
            raise ValueError("give either embeddings or comparisons.scored")
        recognisers = [self.recogniser, *(other.name for other in self.others)]
        if len(set(recognisers)) < len(recognisers):
            raise ValueError(f"recognisers need names of their own, got {recognisers}")
        if self.others and self.embeddings is None:
            raise ValueError("others go with embeddings, not with comparisons.scored")
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names) or "random" in names:
            raise ValueError(f"methods need names of their own, and not `random`; got {names}")
        if list(self.discard_fractions) != sorted(set(self.discard_fractions)):
            raise ValueError(f"discard_fractions must increase, got {list(self.discard_fractions)}")
        if len(set(self.fmr)) < len(self.fmr):
            raise ValueError(f"fmr names a rate twice, got {list(self.fmr)}")
        if self.pair_quality != "minimum":
            self._check_other_pair_quality()

    def _check_other_pair_quality(self) -> None:
        if self.discarded == "images":
            raise ValueError(f"pair_quality={self.pair_quality} needs discarded=comparisons")
        if self.groups is not None:
            raise ValueError(
                f"groups need pair_quality=minimum, got {self.pair_quality}: they tell whose images"
                " a quality discards"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DrawConfig:
    """Draw a set of faces with known degradations into a folder of PNG files, one per identity."""

    output: Text
    """Folder to make; severity.csv in it holds what is known of each face."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DemoConfig:
    """Draw faces, embed, label, train, score and evaluate them: the whole road on one command."""

    output: Text = "demo"
    """Folder of everything the demo writes; `evaluation/report.html` is in it."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    holdout_share: Rate = 0.25
    """Share of the identities that training never sees and that the model is evaluated on."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=1e-3, epochs=8, milestones=(6,), batch_size=32
        )
    )
    ray: RayConfig = field(default_factory=RayConfig)
