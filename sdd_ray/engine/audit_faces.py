"""The faces of an audit's report: each finding beside images that it is to be compared with."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdd_ray.core.audit import ELSEWHERE, POOR, SECOND_PERSON, VERDICTS
from sdd_ray.engine.audit_findings import Findings
from sdd_ray.formats.items import Source
from sdd_ray.formats.reading import Album
from sdd_ray.report.drawing import to_jpeg
from sdd_ray.report.faces import Case, Face, FaceGroup

_SHOWN = 5
"""Images of an identity or group that are shown."""

Rows = NDArray[np.int64]


class Faces:
    """Makes cases out of findings; every image is read once, all of a section at the same time.

    Args:
        found: What was found.
        source: Where the images are.
    """

    def __init__(self, found: Findings, source: Source) -> None:
        self._found = found
        self._album = Album(source, pa.chunked_array([found.context.audited.image_ids]))
        self._read: dict[int, bytes | None] = {}

    @property
    def none_could_be_read(self) -> bool:
        """Whether all images tried so far were unreadable."""
        return bool(self._read) and all(image is None for image in self._read.values())

    @property
    def num_tried(self) -> int:
        """Images tried so far."""
        return len(self._read)

    def suspects(self, places: Sequence[int]) -> tuple[Case, ...]:
        """Return cases of suspects at some places of the list."""
        part = self._found.suspects
        plans = []
        for place in places:
            row, nearest = int(part.rows[place]), int(part.nearest[place])
            own = self._typical(int(part.evidence.codes[place]), without=row)
            plans.append((place, row, own, self._typical(nearest) if nearest >= 0 else _none()))
        self._fetch([np.concatenate([[row], own, other]) for _, row, own, other in plans])
        return tuple(self._suspect(*plan) for plan in plans)

    def _suspect(self, place: int, row: int, own: Rows, other: Rows) -> Case:
        part, evidence = self._found.suspects, self._found.suspects.evidence
        verdict = part.verdict[place]
        identity = self._name(int(evidence.codes[place]))
        share = float(part.match_share[place])
        mated = int(evidence.num_mated[place])
        words = [f"score {part.score[place]:.2f}", f"{share:.0%} of {mated:,} own match"]
        if verdict == SECOND_PERSON:
            words.append("second person of a mixed identity")
        if verdict == POOR:
            words.append(f"{evidence.norm_rank[place]:.0%} of the embeddings are shorter")
        elif not part.certain[place]:
            words.append("low certainty: few images")
        groups = [
            FaceGroup("this image", self._faces([row]), is_subject=True),
            FaceGroup(f"own: {identity}, {evidence.own[place]:.2f}", self._faces(own)),
        ]
        if len(other):
            nearest = self._name(int(part.nearest[place]))
            what = "suggested" if verdict == ELSEWHERE else "nearest other"
            title = f"{what}: {nearest}, {evidence.nearest[place]:.2f}"
            groups.append(FaceGroup(title, self._faces(other)))
        return Case(self._image_id(row), "; ".join(words), tuple(groups))

    def same_person(self, places: Sequence[int]) -> tuple[Case, ...]:
        """Return cases of pairs of identities."""
        part = self._found.same
        pairs = [(int(part.first[p]), int(part.second[p]), p) for p in places]
        shown = {code: self._typical(code) for a, b, _ in pairs for code in (a, b)}
        self._fetch(list(shown.values()))
        return tuple(
            Case(
                f"{self._name(a)} and {self._name(b)}",
                f"likeness {part.likeness[p]:.2f}",
                tuple(FaceGroup(self._name(c), self._faces(shown[c])) for c in (a, b)),
            )
            for a, b, p in pairs
        )

    def mixed(self, places: Sequence[int]) -> tuple[Case, ...]:
        """Return cases of identities with several groups."""
        chosen = [self._found.mixed[place] for place in places]
        self._fetch([rows[:_SHOWN] for m in chosen for rows in m.groups[:3]])
        return tuple(
            Case(
                self._name(m.split.identity),
                f"between the first two groups {m.split.between:.2f}",
                tuple(
                    FaceGroup(
                        f"{len(rows):,} images" + (f": {m.split.within[n]:.2f}" if n < 2 else ""),
                        self._faces(rows[:_SHOWN]),
                        is_subject=n > 0,
                    )
                    for n, rows in enumerate(m.groups[:3])
                ),
            )
            for m in chosen
        )

    def groups(self, groups: Sequence[tuple[str, str, Rows]], *, named: bool) -> tuple[Case, ...]:
        """Return cases of groups of equal images: heading, words, images.

        Args:
            groups: What is shown.
            named: Whether each image needs its identity below it.
        """
        self._fetch([rows[: 2 * _SHOWN] for _, _, rows in groups])
        return tuple(
            Case(
                heading,
                words,
                (FaceGroup("", self._faces(rows[: 2 * _SHOWN], named=named)),),
            )
            for heading, words, rows in groups
        )

    def _typical(self, code: int, without: int = -1) -> Rows:
        """Return the images most similar to their identity: of a mixed one, mostly one person."""
        audited, own = self._found.context.audited, self._found.context.survey.own
        start, stop = np.searchsorted(audited.codes, [code, code + 1])
        rows = np.arange(start, stop)
        rows = rows[rows != without]
        order = np.argsort(-np.nan_to_num(own[rows]), kind="stable")
        return np.asarray(rows[order[:_SHOWN]])

    def _fetch(self, wanted: Sequence[Rows]) -> None:
        """Read all images that were not read yet."""
        rows = sorted({int(row) for part in wanted for row in part} - self._read.keys())
        for row, face in zip(rows, self._album.faces(rows), strict=True):
            self._read[row] = None if face is None else to_jpeg(face)

    def _faces(self, rows: Sequence[int] | Rows, *, named: bool = False) -> tuple[Face, ...]:
        codes = self._found.context.audited.codes
        return tuple(
            Face(
                self._read[int(row)],
                f"{self._image_id(int(row))} of {self._name(int(codes[row]))}",
                self._name(int(codes[row])) if named else "",
            )
            for row in rows
        )

    def _image_id(self, row: int) -> str:
        return str(self._found.context.audited.image_ids[row].as_py())

    def _name(self, code: int) -> str:
        return str(self._found.context.audited.names[code].as_py())


def _none() -> Rows:
    return np.zeros(0, np.int64)


def first_of(found: Findings, names: Sequence[str], most: int) -> list[int]:
    """Return the places of the first suspects with some of the verdicts."""
    codes = [VERDICTS.index(name) for name in names]
    return [int(p) for p in np.flatnonzero(np.isin(found.suspects.verdict, codes))[:most]]
