"""Gather what audit.html shows: counts, explanations, the first rows of each table, and faces."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.core.audit import VERDICTS
from sdd_ray.engine.audit_faces import Faces, first_of
from sdd_ray.engine.audit_findings import Findings
from sdd_ray.formats.source import open_source
from sdd_ray.report.audit_figures import own_histogram, suspect_map
from sdd_ray.report.drawing import Figure
from sdd_ray.report.faces import Case, Cases
from sdd_ray.report.page import Cell, Highlight, Section, Table, render_page

REPORT = "audit.html"

_GROUP_COLUMNS = {"image_id": "image", "identity": "identity", "similarity": "similarity"}
_SUSPECT_COLUMNS = {
    "image_id": "image",
    "identity": "identity",
    "score": "score",
    "own_similarity": "own",
    "own_match_share": "match",
    "num_mated": "of",
    "nearest_identity": "nearest other",
    "nearest_similarity": "similarity",
    "norm_rank": "length",
    "certainty": "certainty",
}


def report_html(
    found: Findings,
    made: Mapping[str, pa.Table],
    said: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """Return audit.html as text.

    Args:
        found: What was found.
        made: Its tables by name.
        said: Results as in the manifest.
        versions: Of libraries.

    Raises:
        InputError: The source of the faces is not there.
    """
    report = _Report(found, made, said)
    sections = [
        report.overview(),
        report.elsewhere(),
        report.nowhere(),
        report.poor(),
        report.same_person(),
        report.mixed(),
        report.duplicates(),
        report.shared_images(),
    ]
    if found.labels is not None:
        sections.append(report.labels())
    flat = {
        f"{name.replace('_', ' ')}{': ' * bool(key)}{key.replace('_', ' ')}": value
        for name, item in said.items()
        for key, value in (item.items() if isinstance(item, dict) else [("", item)])
    }
    return render_page("What the similarities betray", sections, {**flat, **versions})


class _Report:
    """The sections of the page, each from the same findings."""

    def __init__(
        self, found: Findings, made: Mapping[str, pa.Table], said: Mapping[str, Any]
    ) -> None:
        self._found = found
        self._made = made
        self._said = said
        options = found.context.config.report
        self._most = options.findings
        self._faces = None if options.faces is None else Faces(found, open_source(options.faces))

    def overview(self) -> Section:
        """Return what was found, and the levels that decide it."""
        said, at = self._said, self._said["thresholds"]
        names = {
            "elsewhere": "images that belong to another identity",
            "nowhere": "images that fit nowhere",
            "same": "identities that share a person with another",
            "mixed": "identities that hold two people or more",
            "duplicates": "near-duplicates within an identity",
            "shared": "images under several identities",
        }
        counts = {
            "elsewhere": said["suspects"]["elsewhere"],
            "nowhere": sum(said["suspects"][v] for v in ("unknown", "second_person", "either")),
            "same": said["same_person"]["identities"],
            "mixed": said["mixed"]["two_people"],
            "duplicates": said["duplicates"]["images"],
            "shared": said["shared_images"]["images"],
        }
        text = (
            f"{said['images']:,} images of {said['identities']:,} identities. Nothing here is a"
            " proof: it is what the similarities of one recogniser suggest, ordered so that the"
            " clearest come first. Look before you delete.\n\n"
            f"All decisions rest on levels of this very set. Two images match above"
            f" {at['match']:.3f}, which {_percent(at['match_fmr'])} of the comparisons between"
            " different identities exceed (FMR), images that do not agree with their own identity"
            f" left out. Below {at['chance']:.3f}, which {_percent(at['chance_fmr'])} exceed, they"
            f" are at chance. An image belongs elsewhere only above {at['elsewhere']:.3f}: at most"
            f" {_percent(at['elsewhere_fpir'])} of the images without fault come as close to a"
            " stranger (FPIR).\n\n"
            "How similar an image is to its identity is the upper quartile of its similarities to"
            " the other images: a few wrong ones among them do not matter."
        )
        highlights = [Highlight(f"{counts[key]:,}", words) for key, words in names.items()]
        return Section("What was found", text, highlights, self._figures())

    def _figures(self) -> list[Figure]:
        found, levels = self._found, self._found.context.levels
        own, part = found.context.survey.own, found.suspects
        figures = []
        if not np.isnan(own).all():
            figures.append(own_histogram(own, {"chance": levels.chance, "match": levels.match}))
        if np.isfinite(part.evidence.nearest).any():
            names = [VERDICTS[code].replace("_", " ") for code in part.verdict]
            marks = (levels.chance, levels.match, part.elsewhere)
            figures.append(suspect_map(part.evidence.own, part.evidence.nearest, names, marks))
        return figures

    def elsewhere(self) -> Section:
        """Return the images that belong to another identity."""
        count = self._said["suspects"]["elsewhere"]
        text = (
            f"{_counted(count, 'image')}. Each matches fewer than a quarter of the images of its"
            " own identity, and another identity, which is named, much better. The score is the"
            " difference of the two similarities."
        )
        return self._suspects("Images that belong elsewhere", text, ["elsewhere"])

    def nowhere(self) -> Section:
        """Return the images that fit no identity."""
        said = self._said["suspects"]
        text = (
            "These are no more similar to their own identity than strangers are, while its other"
            f" images agree, and no other identity is near. {_counted(said['unknown'], 'image')}"
            f" of an unknown person, {said['second_person']:,} of the second person of an identity"
            f" that holds two, and {said['either']:,} of identities with two images, either of"
            " which may be the wrong one. The score is how far the own similarity lies below a"
            " match."
        )
        names = ["second_person", "unknown", "either"]
        return self._suspects("Images that fit nowhere", text, names)

    def poor(self) -> Section:
        """Return the images that fit no identity for their quality."""
        count = self._said["suspects"]["poor"]
        rank = self._found.context.config.suspects.poor_norm_rank
        text = (
            f"{_counted(count, 'image')} that fit nowhere either, but whose embedding is among the"
            f" {rank:.0%} shortest: recognisers give short embeddings to poor images, so the"
            " quality is the likelier reason."
        )
        return self._suspects("Images too poor to tell", text, ["poor"])

    def _suspects(self, heading: str, text: str, names: list[str]) -> Section:
        places = first_of(self._found, names, self._most)
        cases = self._faces.suspects(places) if self._faces else ()
        total = sum(self._said["suspects"][name] for name in names)
        table = self._made["suspects"].take(pa.array(places, pa.int64()))
        what = " and ".join(name.replace("_", " ") for name in names)
        rest = (table, _known(table, _SUSPECT_COLUMNS), what, total)
        return self._section(heading, text, cases, rest)

    def same_person(self) -> Section:
        """Return the identities that may be one person."""
        said, limit = self._said["same_person"], self._found.context.config.same_person.likeness
        text = (
            f"{_counted(said['pairs'], 'pair')} of identities:"
            f" {_counted(said['people'], 'person', 'people')} under {said['identities']:,} names."
            " Likeness is the mean similarity between the images of"
            " the two, over the geometric mean of those within them: 1 for two halves of one"
            f" person. Shown from {limit:g} on."
        )
        table = self._made["same_person"].slice(0, self._most)
        cases = self._faces.same_person(range(table.num_rows)) if self._faces else ()
        columns = {
            "identity_a": "identity",
            "identity_b": "and",
            "likeness": "likeness",
            "mean_similarity": "between",
            "mated_mean_a": "within",
            "mated_mean_b": "within the other",
            "num_images_a": "images",
            "num_images_b": "of the other",
            "certainty": "certainty",
        }
        rest = (table, columns, "pairs", said["pairs"])
        return self._section("One person under several names", text, cases, rest)

    def mixed(self) -> Section:
        """Return the identities that hold several people."""
        said = self._said["mixed"]
        text = (
            f"{_counted(said['two_people'], 'identity', 'identities')} with two or more groups of"
            " images that match within each group, and are at chance between them."
            f" In {said['poor_images']:,} more the smaller groups have such short embeddings that"
            " they are put down to poor images, or another pose, of the same person; these come"
            " last."
        )
        table = self._made["mixed"].slice(0, self._most)
        cases = self._faces.mixed(range(table.num_rows)) if self._faces else ()
        columns = {
            "identity": "identity",
            "verdict": "verdict",
            "num_images": "images",
            "num_groups": "groups",
            "images_first": "in first",
            "images_second": "in second",
            "within_first": "within first",
            "within_second": "within second",
            "between": "between",
            "norm_rank": "length",
        }
        columns = _known(table, columns)
        total = said["two_people"] + said["poor_images"]
        rest = (table, columns, "identities", total)
        return self._section("Two people in one identity", text, cases, rest)

    def duplicates(self) -> Section:
        """Return near-duplicates within identities."""
        said, limit = self._said["duplicates"], self._found.context.config.duplicates.similarity
        text = (
            f"{_counted(said['images'], 'image')} in {_counted(said['groups'], 'group')}, linked by"
            f" {_counted(said['pairs'], 'pair')} of a similarity of at least {limit:g}: the same"
            " photograph saved, cropped or coloured again, or one taken a moment later."
        )
        return self._grouped("Near-duplicates within an identity", text, "duplicates", named=False)

    def shared_images(self) -> Section:
        """Return images that stand under several identities."""
        said = self._said["shared_images"]
        how = (
            "All pairs of images were compared."
            if said["method"] == "exact"
            else "Candidates were found by hashes, which are expected to hold"
            f" {said['recall']:.1%} of the pairs at the limit, and more of the closer ones."
        )
        text = (
            f"{_counted(said['images'], 'image')} in {_counted(said['groups'], 'group')};"
            f" {said['same_content']:,} have the same pixels as an image of another identity, the"
            f" others are near-duplicates. At least one of the identities is wrong. {how}"
        )
        heading = "The same image under several identities"
        return self._grouped(heading, text, "shared_images", named=True)

    def _grouped(self, heading: str, text: str, name: str, *, named: bool) -> Section:
        table = self._made[name]
        group = table["group"].to_numpy()
        counts = np.bincount(group) if len(group) else np.zeros(0, np.int64)
        largest = np.argsort(-counts, kind="stable")[: self._most]
        starts = np.cumsum(counts) - counts
        chosen = [np.arange(starts[g], starts[g] + counts[g]) for g in largest]
        cases: tuple[Case, ...] = ()
        if self._faces and chosen:
            ids = pc.cast(table["image_id"], pa.large_string()).combine_chunks()
            places = pc.index_in(ids, self._found.context.audited.image_ids).to_numpy()
            cases = self._faces.groups(
                [(*_described(table, rows, named=named), places[rows]) for rows in chosen],
                named=named,
            )
        rows = np.concatenate([np.zeros(0, np.int64), *chosen])[: self._most]
        part = (table.take(pa.array(rows)), _GROUP_COLUMNS, "images", table.num_rows)
        return self._section(heading, text, cases, part)

    def labels(self) -> Section:
        """Return how labels differ between identities."""
        table = self._made["identities"]
        table = table.filter(pc.greater(table["num_labels"], 1))
        heading = "Labels per identity"
        if table.num_rows == 0:
            return Section(heading, "No identity has more than one label.")
        means = table["label_mean"].to_numpy()
        low, middle, high = np.quantile(means, [0.05, 0.5, 0.95])
        spread = float(np.median(table["label_std"].to_numpy()))
        text = (
            f"The mean pseudo-label of an identity is between {low:.1f} and {high:.1f} for nine in"
            f" ten identities, median {middle:.1f}; within an identity labels spread by"
            f" {spread:.1f} (median standard deviation). An identity of low labels is one of"
            " poor images, or one whose images are not of one person."
        )
        order = table.sort_by([("label_mean", "ascending"), ("identity", "ascending")])
        names = ["identity", "num_images", "label_mean", "label_std", "label_min", "mated_mean"]
        names += ["num_elsewhere", "num_nowhere", "num_people"]
        columns = {name: name.replace("_", " ") for name in names}
        part = (order.slice(0, self._most), columns, "identities", table.num_rows)
        return self._section(heading, text, (), part)

    def _section(
        self,
        heading: str,
        text: str,
        cases: Sequence[Case],
        part: tuple[pa.Table, Mapping[str, str], str, int],
    ) -> Section:
        table, columns, what, total = part
        is_compact = all(len(case.groups) == 1 for case in cases)
        figures = [Cases(tuple(cases), is_compact)] if cases else []
        if self._faces is not None and self._faces.none_could_be_read:
            text += f"\n\nNone of {self._faces.num_tried:,} images tried could be read."
            figures = []
        if table.num_rows == 0:
            return Section(heading, text)
        shown_of = "all" if table.num_rows == total else f"the first {table.num_rows:,} of"
        caption = f"{what}: {shown_of} {total:,}"
        shown = Table(list(columns.values()), _cells(table, list(columns)), caption)
        return Section(heading, text, figures=figures, tables=[shown])


def _described(table: pa.Table, rows: NDArray[np.int64], *, named: bool) -> tuple[str, str]:
    """Return heading and words of a group of equal images."""
    part = table.take(pa.array(rows))
    similarity = pc.max(part["similarity"]).as_py()
    words = f"{len(rows):,} images, similarity up to {similarity:.4f}"
    if pc.any(part["same_content"]).as_py():
        words += ", equal pixels"
    names = pc.unique(part["identity"]).to_pylist()
    return (", ".join(names[:4]) + (", …" if len(names) > 4 else "") if named else names[0]), words


def _known(table: pa.Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the columns that hold any value."""
    return {k: v for k, v in columns.items() if table[k].null_count < table.num_rows}


def _cells(table: pa.Table, names: list[str]) -> list[list[Cell]]:
    columns = [table[name].to_pylist() for name in names]
    return [list(row) for row in zip(*columns, strict=True)]


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
