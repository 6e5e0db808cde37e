"""The demo: the whole road on one command, in a fresh process as a user runs it."""

import re
import subprocess
import sys

import pytest

from sdd_ray import demo
from sdd_ray.config import main
from sdd_ray.settings import DemoConfig
from sdd_ray.store.dataset import read_json
from sdd_ray.store.location import Location
from sdd_ray.store.run import MANIFEST

STAGES = ("embeddings", "labels", "model", "qualities", "evaluation")
METHODS = ["model", "labels", "known severity", "embedding norm", "random"]

# Eight people held out, with six images each, make 1,008 nonmated comparisons.
SMALL = (
    "synthetic.num_identities=16",
    "synthetic.images_per_identity=6",
    "holdout_share=0.5",
    "optimiser.epochs=1",
    "optimiser.batch_size=16",
    "ray.num_cpus=2",
    "ray.dashboard=false",
)


def run_demo(folder):
    """Run the demo in a process of its own; return what it printed, without times."""
    words = [sys.executable, "-m", "sdd_ray.demo", f"output={folder}", *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return re.sub(r"[\d.,]+ s -> ", "-> ", done.stdout), done.stderr


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder and what the demo printed on standard output."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(folder)[0]


def test_every_stage_is_complete(done):
    folder, out = done
    for stage in STAGES:
        assert (folder / stage / MANIFEST).exists()
    for line in ("embed: 96 of 96", "label: 96 of 96", "train: 48 of 48", "score: 96 of 96"):
        assert line in out
    splits = read_json(Location(str(folder / "model")) / MANIFEST)["results"]["identities"]
    assert splits == {"train": 7, "validation": 1, "holdout": 8}


def test_table_and_rank_correlation_are_printed(done):
    folder, out = done
    assert "48 images of 8 identities, 120 mated and 1,008 nonmated comparisons" in out
    table = [
        line[:16].strip() for line in out.splitlines() if re.match(r".{16}( +[\d.-]+){7}$", line)
    ]
    assert table == METHODS * 2
    assert f"report: {folder}/evaluation/report.html" in out
    found = re.search(r"labels against known severity, 96 images: Spearman (-?0\.\d+) ", out)
    # The whole demo reaches more; so few faces already rank clearly better than chance (0.1).
    assert float(found.group(1)) > 0.3


def test_report_shows_faces_curves_and_distributions(done):
    page = (done[0] / "evaluation" / "report.html").read_text(encoding="utf-8")
    for title in (
        "What the quality is worth",
        "Curves at FMR 0.01",
        "Curves at FMR 0.001",
        "The labels",
        "A good and a poor image",
        "Faces from worst to best",
        "Against the known severity",
    ):
        assert title in page
    assert page.count("data:image/") >= 24
    assert page.count("<svg") >= 6
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []


@pytest.mark.slow
def test_again_takes_finished_stages_as_they_are(done):
    folder, out = done
    before = {stage: (folder / stage / MANIFEST).read_bytes() for stage in STAGES}
    again, said = run_demo(folder)
    assert again == out
    assert "epoch" not in said
    assert {stage: (folder / stage / MANIFEST).read_bytes() for stage in STAGES} == before


def test_too_few_faces_are_refused_before_work(tmp_path, capsys):
    words = [f"output={tmp_path}/demo", "synthetic.num_identities=16", "holdout_share=0.25"]
    assert main(DemoConfig, demo.run, [*words, "synthetic.images_per_identity=6"]) == 2
    message = "24 images of 4 people are held out and make 216 nonmated comparisons; a false match"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
