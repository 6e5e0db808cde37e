"""The verify command: figures against an independent count, what is not compared, real faces."""

import json
import pickle
import re
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings
from real_faces import embedded_by_a, faces
from sklearn.metrics import roc_auc_score

from sdd_ray import verify
from sdd_ray.config import main
from sdd_ray.formats.images import decode_image
from sdd_ray.formats.verification_bin import read_bin
from sdd_ray.settings import EmbedConfig, LabelConfig, VerifyConfig
from sdd_ray.store.dataset import read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST, REJECTS, OutputRun, Reject, write_part

PEOPLE, IMAGES = 30, 4


def made_rows():
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(PEOPLE), IMAGES)
    embeddings = rng.standard_normal((PEOPLE, 24))[codes] + rng.standard_normal((len(codes), 24))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Rows(embeddings.astype(np.float32), codes)


def made_pairs(rows):
    """Return (N, 2) rows to compare, mated and nonmated by turns, and (N,) which are mated."""
    rng = np.random.default_rng(6)
    pairs = [(IMAGES * p, IMAGES * p + 1 + n % 3) for n, p in enumerate([*range(PEOPLE)] * 2)]
    for person in range(PEOPLE):
        for other in rng.choice(np.arange(1, PEOPLE), 8, replace=False):
            strange = IMAGES * ((person + other) % PEOPLE)
            pairs.append((IMAGES * person, int(strange + rng.integers(IMAGES))))
    pairs = rng.permutation(np.array(pairs))
    return pairs, rows.codes[pairs[:, 0]] == rows.codes[pairs[:, 1]]


def write_pairs(file, rows, pairs, mated):
    lines = ["image_id_a,image_id_b,mated"]
    for (a, b), same in zip(pairs, mated, strict=True):
        lines.append(f"{rows.image_ids[a]},{rows.image_ids[b]},{str(same).lower()}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def do_verify(tmp_path, capsys):
    """Return a function that runs the command; it returns status, stdout and stderr."""
    rows = made_rows()
    write_embeddings(tmp_path / "embeddings", rows, num_files=3)
    write_pairs(tmp_path / "pairs.csv", rows, *made_pairs(rows))

    def run(*words):
        given = [f"embeddings={tmp_path}/embeddings", f"pairs.path={tmp_path}/pairs.csv"]
        status = main(VerifyConfig, verify.run, [*given, "pairs.kind=table", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def counted(rows, pairs, mated, rates):
    """Return the figures by other means: KFold by hand, every threshold, sorted lists."""
    unit = rows.embeddings.astype(np.float64)
    similarities = np.array([unit[a] @ unit[b] for a, b in pairs])
    accuracies = []
    for own in np.array_split(np.arange(len(pairs)), 10):
        other = np.setdiff1d(np.arange(len(pairs)), own)
        tried = sorted(similarities[other], reverse=True)
        right = [np.sum((similarities[other] >= t) == mated[other]) for t in tried]
        threshold = tried[int(np.argmax(right))]
        accuracies.append(np.mean((similarities[own] >= threshold) == mated[own]))
    falling = sorted(similarities[~mated], reverse=True)
    fnmr = [np.mean(similarities[mated] < falling[int(rate * len(falling))]) for rate in rates]
    auc = roc_auc_score(mated, similarities)
    return similarities, np.mean(accuracies), np.std(accuracies), fnmr, auc


def test_figures(do_verify):
    rows = made_rows()
    pairs, mated = made_pairs(rows)
    _, mean, std, fnmr, auc = counted(rows, pairs, mated, [0.1, 0.01])
    assert 0.7 < mean < 0.99
    assert 0 < fnmr[0] < fnmr[1] < 1
    status, out, err = do_verify("fmr=[0.1, 0.01, 0.001]")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"60 mated and 240 nonmated comparisons of {len(np.unique(pairs))} images"
    found = {line[:17].strip(): line[17:].strip() for line in lines[2:]}
    assert found["accuracy"].startswith(f"{100 * mean:.2f} %  ± {100 * std:.2f} over 10 folds, thr")
    assert re.fullmatch(r"\d\d?\.\d\d %", found["EER"])
    assert found["AUC"] == f"{auc:.5f}"
    assert found["FNMR at FMR 0.1"].startswith(f"{100 * fnmr[0]:.2f} %  threshold 0.")
    assert found["FNMR at FMR 0.01"].startswith(f"{100 * fnmr[1]:.2f} %  threshold 0.")
    assert found["FNMR at FMR 0.001"] == "-  not attainable with 240 nonmated comparisons"


def test_output(do_verify, tmp_path):
    status, out, _ = do_verify(f"output={tmp_path}/verification")
    assert status == 0
    assert out == do_verify()[1]
    output = Location(str(tmp_path / "verification"))
    assert output.names() == ["comparisons.parquet", "manifest.json", "rejects.parquet"]
    rows = made_rows()
    pairs, mated = made_pairs(rows)
    similarities, mean, std, fnmr, _ = counted(rows, pairs, mated, [0.01])
    table = read_parquet(output / "comparisons.parquet")
    assert table.column_names == ["image_id_a", "image_id_b", "mated", "fold", "similarity"]
    for column, name in ((0, "image_id_a"), (1, "image_id_b")):
        assert table[name].to_pylist() == [rows.image_ids[row] for row in pairs[:, column]]
    assert table["mated"].to_pylist() == mated.tolist()
    assert table["fold"].to_pylist() == np.repeat(np.arange(10), 30).tolist()
    np.testing.assert_allclose(table["similarity"].to_numpy(), similarities, atol=1e-6)

    manifest = read_json(output / MANIFEST)
    assert manifest["counts"] == {"rows_in": 300, "rows_out": 300, "rejected": {}}
    results = manifest["results"]
    assert results["accuracy"] == pytest.approx(mean, abs=1e-12)
    assert results["accuracy_std"] == pytest.approx(std, abs=1e-12)
    points = results["operating_points"]
    assert [point["fnmr"] for point in points] == [pytest.approx(fnmr[0], abs=1e-12), None, None]
    # Once more: nothing is computed, and the same is printed; another question is refused.
    assert do_verify(f"output={tmp_path}/verification")[:2] == (0, out)
    status, _, err = do_verify(f"output={tmp_path}/verification", "fmr=[0.5]")
    assert status == 1
    assert "is complete with another configuration, which differs in fmr" in err


def test_another_list_in_the_same_file_is_another_verification(do_verify, tmp_path):
    assert do_verify(f"output={tmp_path}/verification")[0] == 0
    rows = made_rows()
    pairs, mated = made_pairs(rows)
    write_pairs(tmp_path / "pairs.csv", rows, pairs[::-1], mated[::-1])
    status, _, err = do_verify(f"output={tmp_path}/verification")
    assert status == 1
    assert "which differs in input pairs" in err


def test_figures_depend_on_no_order_of_the_embeddings(do_verify, tmp_path):
    write_embeddings(tmp_path / "other", made_rows().shuffled(3), num_files=7)
    assert do_verify(f"embeddings={tmp_path}/other") == do_verify()


def write_with_rejects(folder, rows, kept, rejects):
    """Write embeddings of some of the rows, the others set aside."""
    place = Location(str(folder))
    run = OutputRun(place, "embed", EmbedConfig(output=str(folder)))
    run.complete([write_part(place, "part-000000", rows.table().take(kept), rejects)])


def test_what_cannot_be_compared_is_counted_by_reason(do_verify, tmp_path):
    rows = made_rows()
    pairs, mated = made_pairs(rows)
    gone = {IMAGES * 2: "truncated", IMAGES * 3 + 1: "truncated", IMAGES * 5: None}
    rows.embeddings[7 * IMAGES] = 0
    gone[7 * IMAGES] = "zero_embedding"
    rejects = [Reject(rows.image_ids[n], why, "") for n, why in gone.items() if why == "truncated"]
    kept = [n for n in range(len(rows.codes)) if n not in gone or gone[n] == "zero_embedding"]
    write_with_rejects(tmp_path / "some", rows, kept, rejects)

    missed = [row for row in pairs if set(row.tolist()) & set(gone)]
    reasons = [gone[row[0] if row[0] in gone else row[1]] for row in missed]
    wanted = {why or "not_in_embeddings": reasons.count(why) for why in set(reasons)}
    assert len(wanted) == 3
    status, out, _ = do_verify(f"embeddings={tmp_path}/some", f"output={tmp_path}/verification")
    assert status == 0
    said = ", ".join(f"{name} {count}" for name, count in sorted(wanted.items()))
    is_made = np.array([not set(row.tolist()) & set(gone) for row in pairs])
    made = is_made & mated
    assert out.splitlines()[0].startswith(f"{made.sum()} mated and {(is_made & ~mated).sum()} non")
    assert out.splitlines()[1] == f"NOT made: {len(missed)} comparisons ({said})"

    output = Location(str(tmp_path / "verification"))
    counts = read_json(output / MANIFEST)["counts"]
    assert counts == {"rows_in": 300, "rows_out": 300 - len(missed), "rejected": wanted}
    listed = read_parquet(output / REJECTS).to_pylist()
    row = next(row for row in pairs if row[0] == IMAGES * 5 and row[1] not in gone)
    assert {
        "image_id": rows.image_ids[row[0]],
        "reason": "not_in_embeddings",
        "detail": f"not compared with {rows.image_ids[row[1]]}",
    } in listed
    # The others stay in the folds of the whole list.
    folds = read_parquet(output / "comparisons.parquet")["fold"].to_numpy()
    assert folds.tolist() == np.repeat(np.arange(10), 30)[is_made].tolist()


def test_an_image_that_stands_twice(do_verify, tmp_path):
    rows = made_rows()
    rows.image_ids[1] = rows.image_ids[0]
    write_embeddings(tmp_path / "twice", rows, num_files=3)
    status, out, err = do_verify(f"embeddings={tmp_path}/twice")
    assert (status, out) == (1, "")
    assert f"twice: 2 embeddings have the image_id {rows.image_ids[0]}; which one" in err


def test_images_that_are_not_compared_may_stand_twice(do_verify, tmp_path):
    rows = made_rows()
    unused = sorted(set(range(len(rows.codes))) - set(made_pairs(rows)[0].ravel().tolist()))
    more = Rows(
        np.concatenate([rows.embeddings, rows.embeddings[[0, 0]]]),
        np.append(rows.codes, [0, 0]),
        [*rows.image_ids, "another", "another"],
    )
    assert "another" not in [rows.image_ids[n] for n in unused]
    write_embeddings(tmp_path / "more", more)
    assert do_verify(f"embeddings={tmp_path}/more") == do_verify()


def test_nothing_to_compare(do_verify, tmp_path):
    rows = made_rows()
    rows.image_ids[:] = [f"./{name}" for name in rows.image_ids]
    write_embeddings(tmp_path / "other", rows)
    status, _, err = do_verify(f"embeddings={tmp_path}/other")
    assert status == 1
    assert "no comparison can be made: they are between images such as 00" in err
    assert "the embeddings are of images such as ./0000/00000; is pairs.image_id right" in err


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (lambda mated: mated, "of 60 comparisons none is nonmated"),
        (lambda mated: ~mated, "of 240 comparisons none is mated"),
        (lambda mated: np.arange(300) < 9, "expected at least 10 comparisons, got 9"),
    ],
)
def test_lists_that_say_nothing(do_verify, tmp_path, chosen, message):
    rows = made_rows()
    pairs, mated = made_pairs(rows)
    kept = chosen(mated)
    write_pairs(tmp_path / "pairs.csv", rows, pairs[kept], mated[kept])
    status, out, err = do_verify()
    assert (status, out) == (1, "")
    assert message in err


def test_comparisons_that_are_left_in_one_fold(do_verify, tmp_path):
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    text = [lines[0] + ",fold", *(f"{line},only" for line in lines[1:])]
    (tmp_path / "pairs.csv").write_text("\n".join(text))
    status, _, err = do_verify()
    assert status == 1
    assert "all 300 comparisons are in one fold, two are needed" in err


def test_embeddings_that_are_not_there_or_not_whole(do_verify, tmp_path):
    assert "/nowhere: expected a dataset written by embed" in do_verify("embeddings=/nowhere")[2]
    (tmp_path / "embeddings" / MANIFEST).rename(tmp_path / "embeddings" / INCOMPLETE)
    status, _, err = do_verify()
    assert status == 1
    assert "embeddings is not complete: run the command that writes it once more" in err
    place = Location(str(tmp_path / "labels"))
    config = LabelConfig(embeddings="e", output="l")
    OutputRun(place, "label", config, {}).complete([write_part(place, "p", pa.table({"a": [1]}))])
    assert "found one of label" in do_verify(f"embeddings={tmp_path}/labels")[2]


def test_the_command_needs_no_ray(tmp_path, do_verify):
    words = [f"embeddings={tmp_path}/embeddings", f"pairs.path={tmp_path}/pairs.csv"]
    code = (
        "import json, sys\nfrom sdd_ray import verify\nfrom sdd_ray.config import main\n"
        f"status = main(verify.VerifyConfig, verify.run, {[*words, 'pairs.kind=table']!r})\n"
        "print(json.dumps([status, 'ray' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False]


# Real faces


@pytest.fixture(scope="module")
def small_lfw(shared_data):
    """A file of InsightFace: ten comparisons of one person each; its images and embeddings."""
    pytest.importorskip("onnxruntime")
    file = shared_data / "formats" / "small_lfw.bin"
    encoded, _ = read_bin(Location(str(file)))
    pixels = np.stack([decode_image(content) for content in encoded])
    return (
        file,
        encoded,
        embedded_by_a(pixels, shared_data / "recognizers" / "mobilefacenet_a.onnx"),
    )


def test_insightfaces_set(small_lfw, tmp_path, do_verify):
    """The same people paired with each other, too, are told apart by a good recogniser."""
    _, encoded, unit = small_lfw
    order = [*range(20), *range(20)]
    for n in range(10):
        order[20 + 2 * n + 1] = (2 * n + 11) % 20  # another person
    same = [True] * 10 + [False] * 10
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([encoded[n] for n in order], same)))
    rows = Rows(unit[order], np.arange(40), [f"{n:06d}" for n in range(40)])
    write_embeddings(tmp_path / "lfw", rows)
    words = ["pairs.kind=bin", f"pairs.path={tmp_path}/lfw.bin", "fmr=[0.1]"]
    status, out, err = do_verify(f"embeddings={tmp_path}/lfw", *words)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "10 mated and 10 nonmated comparisons of 40 images"
    similarities = [unit[order[2 * n]] @ unit[order[2 * n + 1]] for n in range(20)]
    assert min(similarities[:10]) > max(similarities[10:])
    lowest, next_lowest = sorted(similarities[:10])[:2]
    # Decided by the others, the least alike of one person falls short by a place.
    thresholds = f"thresholds {lowest:.4f} to {next_lowest:.4f}"
    assert [" ".join(line.split()) for line in lines[2:]] == [
        f"accuracy 95.00 % ± 15.00 over 10 folds, {thresholds}",
        "EER 0.00 %",
        "AUC 1.00000",
        f"FNMR at FMR 0.1 0.00 % threshold {sorted(similarities[10:])[-2]:.4f}",
    ]


def test_insightfaces_set_of_mated_comparisons_only(small_lfw, tmp_path, do_verify):
    file, _, unit = small_lfw
    write_embeddings(tmp_path / "lfw", Rows(unit, np.arange(20), [f"{n:06d}" for n in range(20)]))
    words = [f"embeddings={tmp_path}/lfw", "pairs.kind=bin", f"pairs.path={file}"]
    status, _, err = do_verify(*words)
    assert status == 1
    assert "of 10 comparisons none is nonmated" in err
    assert "no comparison can be made" in do_verify(*words, "pairs.image_id=x/{number:06d}")[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cfp(shared_data, tmp_path, do_verify):
    """Figures of the set's notes, found by InsightFace's grid of thresholds; here it is exact."""
    pytest.importorskip("onnxruntime")
    images, codes, names = faces(shared_data / "cfp112.tar")
    unit = embedded_by_a(images, shared_data / "recognizers" / "mobilefacenet_a.onnx")
    write_embeddings(tmp_path / "cfp", Rows(unit, codes, names))
    with tarfile.open(shared_data / "cfp_protocol.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    for protocol, accuracy, fnmr in (("FF", 0.9934, 0.013), ("FP", 0.8809, 0.51)):
        words = ["pairs.kind=cfp", f"pairs.path={tmp_path}/Protocol", f"pairs.protocol={protocol}"]
        output = tmp_path / protocol
        status, out, _ = do_verify(f"embeddings={tmp_path}/cfp", *words, f"output={output}")
        assert status == 0
        assert out.startswith("3,500 mated and 3,500 nonmated comparisons of ")
        results = read_json(Location(str(output)) / MANIFEST)["results"]
        assert results["accuracy"] == pytest.approx(accuracy, abs=0.003)
        assert results["operating_points"][1]["fnmr"] == pytest.approx(fnmr, abs=0.005)
        assert results["operating_points"][2]["fnmr"] is None
