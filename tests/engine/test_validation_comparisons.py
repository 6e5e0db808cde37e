"""Which validation images are compared, which comparisons are wrong, the area of their curve."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_tables import label_table, write_label_table
from labelled_faces import train_config
from made_datasets import Rows as Embedded
from made_datasets import write_embeddings

from sdd_ray.engine import validation_comparisons as module
from sdd_ray.engine.training_rows import Block, Rows
from sdd_ray.engine.validation_comparisons import ValidationComparisons, validation_comparisons
from sdd_ray.errors import InputError
from sdd_ray.settings import TrainConfig, ValidationConfig
from sdd_ray.store.dataset import Dataset, open_dataset

pytestmark = pytest.mark.usefixtures("ray_session")

PEOPLE, IMAGES = 12, 8


@dataclass
class Case:
    embedded: Embedded
    embeddings: str
    labels: Dataset
    config: TrainConfig
    validation: Rows

    def compared(self, **changes):
        config = replace(self.config, **changes)
        return validation_comparisons(config, self.labels, self.validation)

    def with_options(self, **options):
        return self.compared(validation=replace(self.config.validation, **options))


def people_of(embedded):
    return [f"p{code:04d}" for code in embedded.codes]


@pytest.fixture
def case(tmp_path):
    """Noisy embeddings of people, all labelled; half of the people, shuffled, are validated on."""
    draws = np.random.default_rng(3)
    codes = np.repeat(np.arange(PEOPLE), IMAGES)
    noise = draws.uniform(0.5, 2.5, (len(codes), 1))
    centres = draws.normal(size=(PEOPLE, 16))
    embedded = Embedded(centres[codes] + noise * draws.normal(size=(len(codes), 16)), codes)
    embedded = embedded.shuffled(4)
    embeddings = write_embeddings(tmp_path / "embeddings", embedded, num_files=3)
    people = people_of(embedded)
    labels = write_label_table(
        tmp_path / "labels",
        label_table(embedded.image_ids, people, pseudo_label=draws.uniform(0, 100, len(codes))),
        embeddings=embeddings,
        digest=open_dataset(embeddings, ["embed"]).digest,
    )
    config = train_config(
        str(tmp_path / "labels"), tmp_path / "model", validation=ValidationConfig(fmr=0.05)
    )
    chosen = draws.permutation([n for n, code in enumerate(embedded.codes) if code % 2])
    table = pa.table(
        {
            "image_id": [embedded.image_ids[n] for n in chosen],
            "identity": [people[n] for n in chosen],
            "row": np.arange(len(chosen)),
        }
    )
    return Case(embedded, embeddings, labels, config, Rows(table, (), len(chosen)))


def brute_force(case, fmr):
    """Return threshold, and wrong or not by pair of image_ids, from a loop over all pairs."""
    wanted = case.validation.table["image_id"].to_pylist()
    place = {name: n for n, name in enumerate(case.embedded.image_ids)}
    vectors = case.embedded.embeddings / np.linalg.norm(case.embedded.embeddings, axis=1)[:, None]
    mated, nonmated = {}, []
    for one, other in itertools.combinations(sorted(wanted), 2):
        similarity = vectors[place[one]] @ vectors[place[other]]
        if case.embedded.codes[place[one]] == case.embedded.codes[place[other]]:
            mated[one, other] = similarity
        else:
            nonmated.append(similarity)
    threshold = sorted(nonmated, reverse=True)[int(fmr * len(nonmated))]
    return threshold, {pair: similarity < threshold for pair, similarity in mated.items()}


def by_ids(case, found):
    ids = case.validation.table["image_id"].to_pylist()
    pairs = zip(found.first, found.second, strict=True)
    return {
        tuple(sorted((ids[a], ids[b]))): w for (a, b), w in zip(pairs, found.wrong, strict=True)
    }


def test_comparisons_are_those_of_a_loop_over_all_pairs(case):
    found, reason = case.compared()
    threshold, wrong = brute_force(case, fmr=0.05)
    assert reason == ""
    assert found.threshold == pytest.approx(threshold, abs=1e-6)
    assert by_ids(case, found) == wrong
    assert 0 < sum(wrong.values()) < len(wrong) == PEOPLE // 2 * IMAGES * (IMAGES - 1) // 2
    assert (found.first.dtype, found.second.dtype, found.fmr) == (np.int32, np.int32, 0.05)


def test_rows_on_disk_are_compared_as_rows_in_memory(case, tmp_path):
    pq.write_table(case.validation.table, tmp_path / "rows.parquet", row_group_size=10)
    blocks = tuple(Block(str(tmp_path / "rows.parquet"), n, 10) for n in range(5))
    on_disk = replace(case, validation=Rows(None, blocks, case.validation.num_rows))
    assert by_ids(case, on_disk.compared()[0]) == by_ids(case, case.compared()[0])


def test_only_whole_identities_are_compared(case):
    found, _ = case.with_options(max_images=3 * IMAGES + 5)
    people = {image_id.split("/")[0] for pair in by_ids(case, found) for image_id in pair}
    assert len(people) == 3
    assert len(found.wrong) == 3 * IMAGES * (IMAGES - 1) // 2
    again = replace(case, config=replace(case.config, seed=9)).with_options(max_images=3 * IMAGES)
    assert by_ids(case, again[0]) == by_ids(case, found)


def test_nonmated_comparisons_are_sampled(case, monkeypatch):
    monkeypatch.setattr(module, "_MOST_NONMATED", 400)
    found, _ = case.compared()
    # 400 of 960 comparisons: about the threshold of all of them; the mated ones all stay.
    threshold, wrong = brute_force(case, fmr=0.05)
    assert 0 < abs(found.threshold - threshold) < 0.1
    assert by_ids(case, found).keys() == wrong.keys()


def test_images_without_a_usable_embedding_are_left_out(case, tmp_path):
    embedded = case.embedded
    ids = case.validation.table["image_id"].to_pylist()
    embedded.embeddings[embedded.image_ids.index(ids[0])] = 0
    lost = embedded.image_ids.index(ids[1])
    embedded.image_ids[lost] = "renamed"
    embeddings = write_embeddings(tmp_path / "others", embedded)
    found, _ = case.with_options(embeddings=embeddings)
    assert set(np.unique([found.first, found.second])) == set(range(2, len(ids)))


def area_by_hand(qualities, first, second, wrong):
    """Return the area from the errors after 0, 1, 2 ... comparisons are gone, ties together."""
    quality = [min(qualities[a], qualities[b]) for a, b in zip(first, second, strict=True)]
    total, area = len(quality), 0.0
    for place in range(total):
        share = min(max(0.3 * total - place, 0), 1) / total  # until one more could be gone
        cut = sorted(quality)[place]
        left = [w for w, q in zip(wrong, quality, strict=True) if q >= cut]
        area += share * sum(left) / len(left)
    return area / (0.3 * sum(wrong) / total)


@pytest.mark.parametrize("ties", [False, True])
def test_area_is_that_of_the_steps(ties):
    draws = np.random.default_rng(5)
    first, second = (np.array(side, np.int32) for side in np.triu_indices(30, 1))
    wrong = draws.random(len(first)) < 0.2
    found = ValidationComparisons(first, second, wrong, 1e-3, 0.3)
    qualities = draws.integers(0, 5, 30) if ties else draws.random(30)
    wanted = area_by_hand(qualities, first, second, wrong)
    assert found.normalised_pauc(qualities.astype(np.float32)) == pytest.approx(wanted, rel=1e-6)


def test_area_of_perfect_constant_and_failed_qualities():
    first, second = np.arange(0, 20, 2, dtype=np.int32), np.arange(1, 21, 2, dtype=np.int32)
    wrong = np.arange(10) < 2
    found = ValidationComparisons(first, second, wrong, 1e-3, 0.3)
    perfect = np.repeat(np.where(wrong, 0.0, 1.0), 2)
    # Both errors are discarded together at 0.2 of the comparisons, of 0.3.
    assert found.normalised_pauc(perfect) == pytest.approx(0.2 / 0.3)
    assert found.normalised_pauc(np.where(perfect == 0, np.nan, 1.0)) == pytest.approx(0.2 / 0.3)
    assert found.normalised_pauc(np.full(20, 7.0)) == pytest.approx(1)
    # Three right ones leave first, one after the other: of 10, 9 and 8 comparisons two are wrong.
    worst = np.repeat(np.where(wrong, 9, np.arange(10)), 2)
    area = 0.1 * (2 / 10 + 2 / 9 + 2 / 8)
    assert found.normalised_pauc(worst) == pytest.approx(area / (0.3 * 0.2))
    none = replace(found, wrong=np.zeros(10, bool))
    assert np.isnan(none.normalised_pauc(perfect))


def lose_embeddings(case, tmp_path):
    (tmp_path / "embeddings" / "manifest.json").unlink()
    return case


def other_embeddings(case, tmp_path):
    manifest = {**case.labels.manifest, "inputs": {"embeddings": "0123"}}
    return replace(case, labels=replace(case.labels, manifest=manifest))


def embeddings_of_others(case, tmp_path):
    table = case.validation.table.set_column(0, "image_id", case.validation.table["identity"])
    return replace(case, validation=replace(case.validation, table=table))


def large_identities(case, tmp_path):
    return replace(case, config=replace(case.config, validation=ValidationConfig(max_images=7)))


def low_rate(case, tmp_path):
    return replace(case, config=replace(case.config, validation=ValidationConfig(fmr=1e-3)))


def no_errors(case, tmp_path):
    equal = Embedded(np.eye(16)[case.embedded.codes], case.embedded.codes, case.embedded.image_ids)
    embeddings = write_embeddings(tmp_path / "equal", equal)
    manifest = {
        "config": {"embeddings": embeddings},
        "inputs": {"embeddings": open_dataset(embeddings, ["embed"]).digest},
    }
    return replace(case, labels=replace(case.labels, manifest=manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_embeddings, "expected a dataset written by embed, found no manifest.json"),
        (other_embeddings, "holds other embeddings than those that were labelled"),
        (embeddings_of_others, "embeddings holds none of the validation images"),
        (large_identities, "validation.max_images=7 is fewer than the images of any of 6"),
        (low_rate, "fmr=0.001 allows no false match among 960 nonmated comparisons of 48"),
        (no_errors, "none of 168 mated comparisons of 48 .* is a false non-match"),
    ],
)
def test_comparisons_that_cannot_be_made(case, tmp_path, change, message):
    changed = change(case, tmp_path)
    found, reason = changed.compared()
    assert found is None
    with pytest.raises(InputError, match=message) as caught:
        changed.compared(best="pauc")
    assert str(caught.value) == f"best=pauc needs comparisons of validation images: {reason}"


def test_embeddings_that_were_asked_for_must_be_there(case, tmp_path):
    with pytest.raises(InputError, match=r"^validation\.embeddings: .*nowhere: expected a dataset"):
        case.with_options(embeddings=str(tmp_path / "nowhere"))


def test_embeddings_of_two_lengths(case, tmp_path):
    file = tmp_path / "embeddings" / "part-000001.parquet"
    table = pq.read_table(file)
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4 * len(table), np.float32)), 4)
    pq.write_table(table.set_column(2, "embedding", short), file)
    found, reason = case.compared()
    assert found is None
    assert reason == f"{file}: embeddings of 4 numbers, others have 16"
