"""What the audit finds of errors that were put in on purpose, on real faces.

    python benchmarks/audit.py [--sets celeba299 cfp112] [--seeds 3] [--work DIR] [key=value ...]

Into each set, for each seed: 2 % of the images are moved to another identity; of 20 people all
images are taken out, and some, 1 % of the set, put under other identities; 10 people are split into
two identities; 10 pairs of people are merged into one; and 3 % of the images get a copy, exact or
saved again as JPEG, under their own or under another identity. What was in the set before is not
known: everything that the audit lists and nobody put there counts against it, and is also printed
without what it lists in the untouched set. Keys are those of `sdd_ray.audit`.

Needs celeba299.tar and cfp112.tar and a recogniser below SDD_RAY_TEST_DATA, else ../shared/data.
"""

import argparse
import os
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sdd_ray import audit, columns, embed
from sdd_ray.config import load_config
from sdd_ray.core.similarity import normalise
from sdd_ray.engine.session import session
from sdd_ray.settings import (
    AuditConfig,
    EmbedConfig,
    PreprocessingConfig,
    RayConfig,
    RecogniserConfig,
    SourceConfig,
)
from sdd_ray.store.dataset import embedding_matrix, open_dataset, read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.recogniser import load_recogniser, recogniser_spec
from sdd_ray.store.run import OutputRun, write_part

REPOSITORY = Path(__file__).resolve().parents[1]
MOVED, UNKNOWN, COPIED = 0.02, 0.01, 0.03
GONE, SPLIT, MERGED = 20, 10, 10
RECALLS = (0.25, 0.5, 0.75, 0.9, 0.95)
RAY = RayConfig(dashboard=False)


@dataclass
class Case:
    """One set with errors put in: columns, and what is known of each row."""

    ids: list[str]
    identity: np.ndarray
    person: np.ndarray
    unit: np.ndarray
    norm: np.ndarray
    content: np.ndarray
    kind: np.ndarray
    splits: set[frozenset[str]] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)
    copies: dict[str, tuple[str, str, bool]] = field(default_factory=dict)

    def thinned(self, most: int) -> "Case":
        """Return the set with at most so many images of each person, drawn at random."""
        rng = np.random.default_rng(0)
        order = rng.permutation(len(self.ids))
        rank = np.zeros(len(order), np.int64)
        seen: Counter[str] = Counter()
        for row in order:
            rank[row] = seen[self.person[row]]
            seen[self.person[row]] += 1
        kept = np.flatnonzero(rank < most)
        arrays = (self.identity, self.person, self.unit, self.norm, self.content, self.kind)
        return Case([self.ids[row] for row in kept], *(array[kept] for array in arrays))

    def write(self, folder: Path) -> str:
        """Write the set as a dataset of embeddings."""
        place = Location(str(folder))
        flat = pa.FixedSizeListArray.from_arrays(pa.array(self.unit.ravel()), self.unit.shape[1])
        data = [self.ids, self.identity.tolist(), flat, self.norm, self.content]
        table = pa.table(data, schema=columns.embeddings(self.unit.shape[1]))
        run = OutputRun(place, "embed", EmbedConfig(output=str(folder)))
        run.complete([write_part(place, "part-000000", table)])
        return str(folder)


def data_folder() -> Path:
    """Return the folder of real material."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("SDD_RAY_TEST_DATA", default))
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}; set SDD_RAY_TEST_DATA")
    return folder


def recogniser(data: Path) -> RecogniserConfig:
    """Return the MobileFaceNet of the real material."""
    preprocessing = PreprocessingConfig(
        scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    path = str(data / "recognizers" / "mobilefacenet_a.onnx")
    return RecogniserConfig(kind="onnx", path=path, preprocessing=preprocessing)


def embedded(name: str, data: Path, work: Path) -> Case:
    """Return a real set without any change."""
    images, output = work / name, work / f"{name}_embeddings"
    if not images.is_dir():
        with tarfile.open(data / f"{name}.tar") as archive:
            archive.extractall(images, filter="data")
    source = SourceConfig(kind="folder", path=str(images))
    embed.run(EmbedConfig(output=str(output), source=source, recogniser=recogniser(data), ray=RAY))
    table = open_dataset(str(output), ["embed"]).read(columns.embeddings(1).names)
    table = table.sort_by(columns.IMAGE_ID)
    identity = np.array(table[columns.IDENTITY].to_pylist(), object)
    return Case(
        ids=table[columns.IMAGE_ID].to_pylist(),
        identity=identity,
        person=identity.copy(),
        unit=normalise(embedding_matrix(table[columns.EMBEDDING]))[0],
        norm=table[columns.NORM].to_numpy(),
        content=table[columns.CONTENT].to_numpy(),
        kind=np.full(len(identity), "as it was", object),
    )


def spoiled(case: Case, seed: int, images: Path, model: Any) -> Case:
    """Return the set with errors put in."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(case.person))
    identity, kind = case.identity.copy(), case.kind.copy()
    splits, merged = set(), set()
    for name in people[:SPLIT]:
        rows = rng.permutation(np.flatnonzero(case.person == name))
        identity[rows[: len(rows) // 2]] = f"{name}-b"
        kind[rows] = "split"
        splits.add(frozenset((name, f"{name}-b")))
    for a, b in people[SPLIT : SPLIT + 2 * MERGED].reshape(-1, 2):
        identity[case.person == b] = a
        kind[(case.person == a) | (case.person == b)] = "merged"
        merged.add(a)
    gone, rest = np.split(people[SPLIT + 2 * MERGED :], [GONE])
    moved = rng.choice(
        np.flatnonzero(np.isin(case.person, rest)), round(MOVED * len(identity)), replace=False
    )
    for row in moved:
        identity[row] = rng.choice(rest[rest != case.person[row]])
    kind[moved] = "moved"
    absent = np.flatnonzero(np.isin(case.person, gone))
    strangers = rng.choice(absent, min(len(absent), round(UNKNOWN * len(identity))), replace=False)
    identity[strangers] = rng.choice(rest, len(strangers))
    kind[strangers] = "unknown"
    kept = np.setdiff1d(np.arange(len(identity)), np.setdiff1d(absent, strangers))
    plain = np.flatnonzero((kind == "as it was") & np.isin(case.person, rest))
    chosen = rng.choice(plain, round(COPIED * len(identity)), replace=False)
    extra, copies = copied(case, chosen, rest, rng, images, model)
    parts = [(case.unit, extra.unit), (case.norm, extra.norm), (case.content, extra.content)]
    unit, norm, content = (np.concatenate([a[kept], b]) for a, b in parts)
    return Case(
        ids=[case.ids[row] for row in kept] + extra.ids,
        identity=np.concatenate([identity[kept], extra.identity]),
        person=np.concatenate([case.person[kept], extra.person]),
        unit=unit,
        norm=norm,
        content=content,
        kind=np.concatenate([kind[kept], extra.kind]),
        splits=splits,
        merged=merged,
        copies=copies,
    )


def copied(
    case: Case,
    chosen: np.ndarray,
    rest: np.ndarray,
    rng: np.random.Generator,
    images: Path,
    model: Any,
) -> tuple[Case, dict[str, tuple[str, str, bool]]]:
    """Return copies of images, exact or as JPEG of two qualities, and what each is a copy of."""
    how = [("exact", "JPEG 75", "JPEG 50")[n % 3] for n in range(len(chosen))]
    across = np.arange(len(chosen)) % 2 == 1
    raw = np.zeros((len(chosen), case.unit.shape[1]), np.float32)
    content = case.content[chosen].copy()
    for place, row in enumerate(chosen):
        if how[place] == "exact":
            raw[place] = case.unit[row] * case.norm[row]
            continue
        buffer = BytesIO()
        quality = int(how[place].split()[1])
        Image.open(images / case.ids[row]).convert("RGB").save(buffer, "JPEG", quality=quality)
        raw[place] = model.embed(np.asarray(Image.open(buffer).convert("RGB"))[None])[0]
        content[place] = rng.integers(2**63)
    unit, norm = normalise(raw)
    person = case.person[chosen]
    identity = person.copy()
    for place in np.flatnonzero(across):
        identity[place] = rng.choice(rest[rest != person[place]])
    ids = [f"{identity[place]}/copy-{place:05d}.jpg" for place in range(len(chosen))]
    kind = np.where(across, "copied elsewhere", "copied")
    copies = {
        new: (case.ids[row], way, bool(is_across))
        for new, row, way, is_across in zip(ids, chosen, how, across, strict=True)
    }
    return Case(ids, identity, person, unit, norm, content, kind), copies


def run_audit(
    embeddings: str, output: Path, words: list[str]
) -> tuple[dict[str, list], dict[str, Any]]:
    """Return the rows of all tables of an audit, and its manifest."""
    given = [f"embeddings={embeddings}", f"output={output}", "ray.dashboard=false", *words]
    audit.run(load_config(AuditConfig, None, given))
    place = Location(str(output))
    names = ("suspects", "same_person", "mixed", "duplicates", "shared_images")
    tables = {name: read_parquet(place / f"{name}.parquet").to_pylist() for name in names}
    return tables, read_json(place / "manifest.json")


def judge_elsewhere(case: Case, rows: list[dict], known: set[str], figures: dict) -> None:
    """Add figures on the images that belong to another identity."""
    at = {image_id: place for place, image_id in enumerate(case.ids)}
    wrong = {i for i, place in at.items() if case.kind[place] in ("moved", "copied elsewhere")}
    listed = [row for row in rows if row["verdict"] == "elsewhere"]
    found = [row for row in listed if row["image_id"] in wrong]
    before = sum(row["image_id"] in known - wrong for row in listed)
    right = sum(row["suggested_identity"] == case.person[at[row["image_id"]]] for row in found)
    figures["elsewhere: put in"].append(len(wrong))
    figures["elsewhere: listed"].append(len(listed))
    figures["elsewhere: listed in the untouched set too"].append(before)
    figures["elsewhere: precision"].append(len(found) / max(len(listed), 1))
    figures["elsewhere: precision without those"].append(len(found) / max(len(listed) - before, 1))
    figures["elsewhere: recall"].append(len(found) / len(wrong))
    figures["elsewhere: of those found, right identity named"].append(right / max(len(found), 1))
    by_gap = [case.ids[place] for place in np.argsort(signed_gaps(case), kind="stable")]
    for name, ids in (
        ("suspects in order", [row["image_id"] for row in rows]),
        ("all images by signed gap", by_gap),
    ):
        hits = np.cumsum([image_id in wrong for image_id in ids])
        for recall in RECALLS:
            place = int(np.searchsorted(hits, recall * len(wrong)))
            value = hits[place] / (place + 1) if place < len(hits) else float("nan")
            figures[f"{name}: precision at recall {recall:g}"].append(value)


def signed_gaps(case: Case) -> np.ndarray:
    """Return what label calls signed_gap: the mean mated minus the mean nonmated similarity."""
    _, codes = np.unique(case.identity.astype(str), return_inverse=True)
    sizes = np.bincount(codes)[codes]
    sums = np.zeros((codes.max() + 1, case.unit.shape[1]))
    np.add.at(sums, codes, case.unit)
    own = (case.unit * sums[codes]).sum(axis=1)
    everything = case.unit @ sums.sum(axis=0)
    mated = (own - 1) / np.maximum(sizes - 1, 1)
    gap = mated - (everything - own) / (len(codes) - sizes)
    return np.where(sizes > 1, gap, np.inf)


def judge_nowhere(case: Case, rows: list[dict], figures: dict) -> None:
    """Add figures on the images of people that are not in the set."""
    at = {image_id: place for place, image_id in enumerate(case.ids)}
    kinds = [(case.kind[at[row["image_id"]]], row["verdict"]) for row in rows]
    nowhere = ("unknown", "second_person", "either")
    verdicts = Counter(verdict for kind, verdict in kinds if kind == "unknown")
    strangers = int((case.kind == "unknown").sum())
    listed = [kind for kind, verdict in kinds if verdict in nowhere]
    merged = listed.count("merged")
    wrong = sum(kind in ("unknown", "moved", "copied elsewhere") for kind in listed)
    figures["nowhere: unknown people put in"].append(strangers)
    figures["nowhere: recall"].append(sum(verdicts[v] for v in nowhere) / strangers)
    figures["nowhere: put down to poor images"].append(verdicts["poor"] / strangers)
    figures["nowhere: said to belong elsewhere"].append(verdicts["elsewhere"] / strangers)
    figures["nowhere: listed"].append(len(listed))
    figures["nowhere: of them of merged people"].append(merged)
    figures["nowhere: precision without merged people"].append(wrong / max(len(listed) - merged, 1))


def judge_identities(
    case: Case, tables: dict[str, list], before: dict[str, list], figures: dict
) -> None:
    """Add figures on split and merged people."""
    pairs = {frozenset((r["identity_a"], r["identity_b"])) for r in tables["same_person"]}
    known = {frozenset((r["identity_a"], r["identity_b"])) for r in before["same_person"]}
    figures["same person: recall of 10"].append(len(pairs & case.splits) / len(case.splits))
    figures["same person: other pairs"].append(len(pairs - case.splits))
    figures["same person: of them in the untouched set too"].append(
        len((pairs - case.splits) & known)
    )
    for verdict in ("two_people", "poor_images"):
        mixed = {r["identity"] for r in tables["mixed"] if r["verdict"] == verdict}
        known_mixed = {r["identity"] for r in before["mixed"] if r["verdict"] == verdict}
        figures[f"mixed, {verdict}: recall of 10"].append(
            len(mixed & case.merged) / len(case.merged)
        )
        figures[f"mixed, {verdict}: others"].append(len(mixed - case.merged))
        figures[f"mixed, {verdict}: of them in the untouched set too"].append(
            len((mixed - case.merged) & known_mixed)
        )


def judge_copies(case: Case, tables: dict[str, list], figures: dict) -> None:
    """Add figures on duplicated images."""
    groups = {
        name: {row["image_id"]: row["group"] for row in tables[name]}
        for name in ("duplicates", "shared_images")
    }
    total, found = Counter(), Counter()
    for new, (old, how, is_across) in case.copies.items():
        name = "shared_images" if is_across else "duplicates"
        key = f"copies {'across' if is_across else 'within'} identities, {how}: recall"
        total[key] += 1
        found[key] += groups[name].get(new, -1) == groups[name].get(old, -2)
    for key in sorted(total):
        figures[key].append(found[key] / total[key])


def report(name: str, figures: dict[str, list[float]]) -> None:
    """Print each figure: its mean over the seeds, and the single values."""
    print(f"\n{name}")
    for key, values in figures.items():
        single = ", ".join(f"{value:.3g}" for value in values)
        print(f"  {key:<58}{np.mean(values):>9.3f}   ({single})")


def main() -> None:
    """Audit each set as it is and with errors put in, and print what was found of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["celeba299", "cfp112"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=1000, help="images kept of a person")
    parser.add_argument("--work", help="folder kept between runs; a temporary one by default")
    parser.add_argument("keys", nargs="*", help="dotted.key=value of the audit")
    options = parser.parse_args()
    data = data_folder()
    with tempfile.TemporaryDirectory() as scratch, session(RAY):
        work = Path(options.work or scratch)
        for name in options.sets:
            case = embedded(name, data, work).thinned(options.most)
            model = load_recogniser(recogniser_spec(recogniser(data)))
            untouched, manifest = run_audit(
                case.write(Path(scratch) / f"{name}-rows"),
                Path(scratch) / f"{name}-untouched",
                options.keys,
            )
            known = {r["image_id"] for r in untouched["suspects"] if r["verdict"] == "elsewhere"}
            figures: dict[str, list[float]] = defaultdict(list)
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                spoilt = spoiled(case, seed, work / name, model)
                folder = Path(scratch) / f"{name}-{seed}"
                rows = spoilt.write(folder / "rows")
                tables, manifest = run_audit(rows, folder / "audit", options.keys)
                judge_elsewhere(spoilt, tables["suspects"], known, figures)
                judge_nowhere(spoilt, tables["suspects"], figures)
                judge_identities(spoilt, tables, untouched, figures)
                judge_copies(spoilt, tables, figures)
                figures["seconds"].append(manifest["seconds"])
            report(f"{name}: {len(case.ids):,} images", figures)


if __name__ == "__main__":
    main()
