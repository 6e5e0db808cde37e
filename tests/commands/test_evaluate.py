"""The evaluate command: its tables, its report, and results that depend on no order of rows."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from made_datasets import Rows, write_embeddings

from sdd_ray import evaluate
from sdd_ray.config import main
from sdd_ray.settings import EvaluateConfig
from sdd_ray.store.dataset import read_json, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST, parquet_bytes

pytestmark = pytest.mark.usefixtures("ray_session")


def made_rows():
    """Sixty images of twelve people; the noise of each is known."""
    generator = np.random.default_rng(5)
    codes = np.repeat(np.arange(12), 5)
    noise = generator.random(60)
    centres = generator.standard_normal((12, 16))
    embeddings = centres[codes] + 2.5 * noise[:, None] * generator.standard_normal((60, 16))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Rows(unit.astype(np.float32), codes), noise


def write_noise(file, rows, noise, order):
    ids = [rows.image_ids[n] for n in order]
    file.write_bytes(parquet_bytes(pa.table({"image_id": ids, "noise": noise[order]})))


@pytest.fixture
def do_evaluate(tmp_path, capsys):
    """Return a function that runs the command; it returns status, stdout and stderr."""
    rows, noise = made_rows()
    write_embeddings(tmp_path / "embeddings", rows, num_files=2)
    write_noise(tmp_path / "noise.parquet", rows, noise, np.arange(60))

    def run(*words):
        methods = (
            f"methods=[{{name: known noise, path: {tmp_path}/noise.parquet, column: noise,"
            " kind: severity, sign: -1}]"
        )
        given = [f"embeddings={tmp_path}/embeddings", f"output={tmp_path}/evaluation", methods]
        status = main(EvaluateConfig, evaluate.run, [*given, "fmr=[0.1, 0.01]", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_outputs(do_evaluate, tmp_path):
    status, out, _ = do_evaluate()
    assert status == 0
    output = Location(str(tmp_path / "evaluation"))
    names = ["curves.csv", "curves.parquet", "manifest.json", "rejects.parquet", "report.html"]
    assert sorted(output.names()) == [*names, "summary.csv", "summary.parquet"]

    lines = out.splitlines()
    assert lines[0] == ("60 images of 12 identities, 120 mated and 1,650 nonmated comparisons")
    assert [line[:16].strip() for line in lines if re.match(r"(known noise|random) ", line)] == [
        "known noise",
        "random",
    ] * 2
    assert lines[-1] == f"report: {tmp_path}/evaluation/report.html"

    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv"))
    assert summary["method"].to_pylist() == ["known noise"] * 2 + ["random"] * 2
    assert summary["fmr"].to_pylist() == [0.1, 0.01] * 2
    known, random = (summary["evrc_0.3"].to_pylist()[n] for n in (0, 2))
    assert known < random
    # The table on the terminal shows the same numbers.
    assert f"{100 * known:8.2f}" in next(line for line in lines if line.startswith("known noise"))
    curves = read_parquet(output / "curves.parquet")
    assert curves.num_rows == 2 * 2 * (96 + 20)
    assert set(curves["curve"].to_pylist()) == {"edc", "evrc"}


def test_report_needs_nothing_from_elsewhere(do_evaluate, tmp_path):
    do_evaluate()
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "known noise" in page
    assert "<svg" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []
    assert "@import" not in page
    assert "<script src" not in page


def test_again_prints_the_same(do_evaluate, tmp_path):
    _, first, _ = do_evaluate()
    manifest = (tmp_path / "evaluation" / MANIFEST).read_bytes()
    status, again, said = do_evaluate()
    assert (status, again, said) == (0, first, "")
    assert (tmp_path / "evaluation" / MANIFEST).read_bytes() == manifest


def test_results_depend_on_no_order_of_rows(do_evaluate, tmp_path):
    do_evaluate()
    rows, noise = made_rows()
    write_embeddings(tmp_path / "other", rows.shuffled(3), num_files=5)
    write_noise(tmp_path / "noise.parquet", rows, noise, np.arange(60)[::-1])
    status, *_ = do_evaluate(f"embeddings={tmp_path}/other", f"output={tmp_path}/again")
    assert status == 0
    first, second = (
        read_json(Location(str(tmp_path / name)) / MANIFEST) for name in ("evaluation", "again")
    )
    assert first["results"] == second["results"]
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("embeddings=/nowhere", "/nowhere: expected a dataset written by embed"),
        ("methods=[{name: q, path: /nowhere.parquet}]", "/nowhere.parquet"),
        ("methods=[{name: q, path: %s, column: quality}]", "no column quality"),
        ("fmr=[1e-4]", "fmr=0.0001 needs at least 10,000 nonmated comparisons, there are 1,650"),
        ("comparisons.splits=/nowhere.parquet", "/nowhere.parquet"),
    ],
)
def test_mistakes_end_in_one_message(do_evaluate, tmp_path, word, message):
    status, out, err = do_evaluate(word.replace("%s", f"{tmp_path}/noise.parquet"))
    assert (status, out) == (1, "")
    assert message in err
    assert not (tmp_path / "evaluation" / MANIFEST).exists()
