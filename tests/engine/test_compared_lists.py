"""Comparisons of lists: the images of verification lists, IJB's templates, given similarities."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings

from sdd_ray.core.templates import average_templates
from sdd_ray.engine.assessing import evaluate_methods, read_methods
from sdd_ray.engine.evaluating import compare_all
from sdd_ray.engine.listed import compare_listed
from sdd_ray.errors import InputError
from sdd_ray.settings import (
    BootstrapConfig,
    ComparisonsConfig,
    EvaluateConfig,
    MethodConfig,
    PairsConfig,
    TemplatesConfig,
)
from sdd_ray.store.dataset import open_dataset
from sdd_ray.store.run import parquet_bytes


@pytest.fixture
def rows():
    generator = np.random.default_rng(3)
    codes = np.repeat(np.arange(6), 4)
    unit = generator.standard_normal((6, 8))[codes] + generator.standard_normal((24, 8))
    return Rows((unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32), codes)


def dataset(folder, rows):
    return open_dataset(write_embeddings(folder / "embeddings", rows, num_files=2), ["embed"])


def write_pairs(file, rows, pairs, **more):
    ids = np.array(rows.image_ids)
    table = {
        "image_id_a": ids[[a for a, _ in pairs]],
        "image_id_b": ids[[b for _, b in pairs]],
        "mated": [bool(rows.codes[a] == rows.codes[b]) for a, b in pairs],
    }
    file.write_bytes(parquet_bytes(pa.table({**table, **more})))
    return str(file)


def of(rows, kept):
    """Return some of the rows."""
    ids = np.array(rows.image_ids)[kept].tolist()
    return Rows(rows.embeddings[kept], rows.codes[kept], ids)


def all_pairs(number):
    return [(a, b) for a in range(number) for b in range(a)]


def assert_equal(found, wanted):
    assert found.image_ids == wanted.image_ids
    for name in ("mated", "nonmated"):
        one, other = ({}, {})
        for side, into in ((getattr(found, name), one), (getattr(wanted, name), other)):
            ends = zip(side.first.tolist(), side.second.tolist(), strict=True)
            into.update(zip(ends, side.similarities.tolist(), strict=True))
        assert one.keys() == other.keys()
        np.testing.assert_allclose([one[k] for k in other], list(other.values()), atol=1e-6)
    codes = [np.unique(one.codes, return_inverse=True)[1] for one in (found, wanted)]
    np.testing.assert_array_equal(*codes)


@pytest.mark.usefixtures("ray_session")
def test_a_list_of_all_pairs_is_all_pairs(tmp_path, rows):
    embeddings = dataset(tmp_path, rows)
    path = write_pairs(tmp_path / "p.parquet", rows, all_pairs(24))
    listed = ComparisonsConfig(pairs=PairsConfig(kind="table", path=path))
    wanted = compare_all(embeddings, ComparisonsConfig(), [0.1])
    assert_equal(compare_listed(embeddings, listed), wanted)
    # Given similarities are the same again; people are those whom mated comparisons connect.
    unit = dict(zip(rows.image_ids, rows.embeddings, strict=True))
    scores = [float(unit[rows.image_ids[a]] @ unit[rows.image_ids[b]]) for a, b in all_pairs(24)]
    scored = write_pairs(tmp_path / "s.parquet", rows, all_pairs(24), similarity=scores)
    assert_equal(compare_listed(None, ComparisonsConfig(scored=scored)), wanted)


def test_images_that_were_not_embedded_are_counted_and_play_no_part(tmp_path, rows):
    pairs = all_pairs(24)
    path = write_pairs(tmp_path / "p.parquet", rows, pairs)
    kept = np.arange(24) != 5
    some = of(rows, kept)
    listed = ComparisonsConfig(pairs=PairsConfig(kind="table", path=path))
    found = compare_listed(dataset(tmp_path, some), listed)
    assert found.counts == {"comparisons not made, not_in_embeddings": 23}
    assert found.image_ids == sorted(some.image_ids)
    assert len(found.mated.first) + len(found.nonmated.first) == len(pairs) - 23


def test_the_order_of_the_embeddings_does_not_matter(tmp_path, rows):
    path = write_pairs(tmp_path / "p.parquet", rows, all_pairs(24)[::3])
    listed = ComparisonsConfig(pairs=PairsConfig(kind="table", path=path))
    one = compare_listed(dataset(tmp_path / "a", rows), listed)
    other = compare_listed(dataset(tmp_path / "b", rows.shuffled(4)), listed)
    assert one.image_ids == other.image_ids
    for name in ("mated", "nonmated"):
        for part in ("first", "second", "similarities"):
            a, b = (getattr(getattr(found, name), part) for found in (one, other))
            np.testing.assert_array_equal(a, b)


def test_a_kind_of_comparison_is_missing(tmp_path, rows):
    of_two = [(a, b) for a, b in all_pairs(24) if rows.codes[a] != rows.codes[b]]
    path = write_pairs(tmp_path / "p.parquet", rows, of_two)
    listed = ComparisonsConfig(pairs=PairsConfig(kind="table", path=path))
    with pytest.raises(InputError, match="240 can be made, of which none is mated"):
        compare_listed(dataset(tmp_path, rows), listed)
    other = Rows(rows.embeddings, rows.codes, [f"other/{n}" for n in range(24)])
    with pytest.raises(InputError, match="0 can be made, of which none is mated"):
        compare_listed(dataset(tmp_path / "other", other), listed)


def templates(folder, rows):
    """Two templates a person: two frames of a video, and two pictures."""
    lines, pairs = [], []
    for row, name in enumerate(rows.image_ids):
        medium = 100 if row % 4 < 2 else row
        lines.append(f"{name} {row // 2} {medium}")
    for a, b in all_pairs(12):
        pairs.append(f"{a} {b} {int(a // 2 == b // 2)}")
    (folder / "tid.txt").write_text("\n".join(lines))
    (folder / "pairs.txt").write_text("\n".join(pairs))
    return TemplatesConfig(images=str(folder / "tid.txt"), pairs=str(folder / "pairs.txt"))


def of_members(found):
    return zip(found.members.templates, found.members.image_ids, strict=True)


@pytest.mark.usefixtures("ray_session")
def test_templates_are_compared_by_their_averages_and_mean_qualities(tmp_path, rows):
    config = ComparisonsConfig(templates=templates(tmp_path, rows))
    found = compare_listed(dataset(tmp_path, rows), config)
    assert found.image_ids == sorted(map(str, range(12)))
    media = np.where(np.arange(24) % 4 < 2, 100, np.arange(24))
    unit = average_templates(rows.embeddings, np.arange(24) // 2, media, 12)
    number = [int(name) for name in found.image_ids]
    for side in (found.mated, found.nonmated):
        expected = np.einsum(
            "pd,pd->p",
            *(unit[[number[place] for place in ends]] for ends in (side.first, side.second)),
        )
        np.testing.assert_allclose(side.similarities, expected, atol=1e-6)
    assert len(found.mated.first) == 6
    # A person is whom mated comparisons connect.
    assert len(set(found.codes.tolist())) == 6

    file = tmp_path / "q.parquet"
    qualities = np.arange(24.0)
    qualities[[0, 1, 2]] = np.nan
    table = pa.table({"image_id": rows.image_ids, "quality": qualities})
    file.write_bytes(parquet_bytes(table))
    evaluation = EvaluateConfig(
        embeddings="any",
        output="any",
        methods=(MethodConfig(name="q", path=str(file)),),
        comparisons=config,
        fmr=(0.2,),
        bootstrap=BootstrapConfig(draws=0),
    )
    method, _ = evaluate_methods(evaluation, *read_methods(evaluation, found))
    expected = {str(t): (4 * t + 1) / 2 for t in range(12)} | {"0": np.nan, "1": 3.0}
    np.testing.assert_array_equal(method.qualities, [expected[name] for name in found.image_ids])
    assert (method.read.failed, method.read.missing) == (3, 0)

    fewer, ((read,),) = read_methods(replace(evaluation, failures="left_out"), found)
    kept = [name for name in found.image_ids if name != "0"]
    assert fewer.image_ids == kept
    assert fewer.counts == {"left out, without a quality": 1}
    np.testing.assert_array_equal(read.values, [expected[name] for name in kept])
    named = [(kept[template], image) for template, image in of_members(fewer)]
    assert sorted(named) == sorted((str(row // 2), rows.image_ids[row]) for row in range(2, 24))


def test_images_of_templates_without_an_embedding_are_counted(tmp_path, rows):
    kept = np.isin(np.arange(24), [0, 1, 6], invert=True)
    some = of(rows, kept)
    config = ComparisonsConfig(templates=templates(tmp_path, rows))
    found = compare_listed(dataset(tmp_path, some), config)
    # Both images of template 0 are missing, one of the two of template 3.
    assert found.counts == {
        "comparisons not made, not_in_embeddings": 11,
        "images of templates without an embedding": 3,
    }
    assert sorted(map(int, found.image_ids)) == list(range(1, 12))
