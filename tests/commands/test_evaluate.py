"""The evaluate command: its tables, its report, and results that depend on no order of rows."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pytest
from made_datasets import Rows, write_embeddings
from PIL import Image

from sdd_ray import audit, evaluate
from sdd_ray.config import main
from sdd_ray.settings import AuditConfig, EvaluateConfig
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
    tables = ("advice", "correlations", "curves", "differences", "summary")
    names = [f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")]
    others = {"figures", "manifest.json", "rejects.parquet", "report.html"}
    assert set(output.names()) == {*names, *others}
    drawn = (output / "figures").names()
    assert drawn[0] == "01-the-comparisons.svg"
    assert len(drawn) == 1 + 2 * 2
    for name in drawn:
        drawing = (output / "figures" / name).read_bytes()
        assert drawing.startswith(b"<?xml")
        assert drawing.endswith(b"</svg>")

    lines = out.splitlines()
    assert lines[0] == ("60 images of 12 identities, 120 mated and 1,650 nonmated comparisons")
    named = [match[1] for line in lines if (match := re.match(r"(known noise|random) ", line))]
    assert named == ["known noise", "random"] * 2
    assert lines[-1] == f"report: {tmp_path}/evaluation/report.html"

    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv"))
    assert summary["method"].to_pylist() == ["known noise"] * 2 + ["random"] * 2
    assert summary["fmr"].to_pylist() == [0.1, 0.01] * 2
    known, random = (summary["evrc_0.3"].to_pylist()[n] for n in (0, 2))
    assert known < random
    # The table on the terminal shows the same numbers.
    assert f"{100 * known:8.2f}" in next(line for line in lines if line.startswith("known noise"))
    curves = read_parquet(output / "curves.parquet")
    assert curves.num_rows == 2 * 2 * (96 + 96 + 20)
    assert set(curves["curve"].to_pylist()) == {"edc", "fm_edc", "evrc"}


def test_what_is_said_of_methods_is_what_the_draws_say(do_evaluate, tmp_path):
    methods = ", ".join(
        f"{{name: {name}, path: {tmp_path}/noise.parquet, column: noise, kind: severity,"
        f" sign: {sign}}}"
        for name, sign in (("noise", -1), ("poor", 1))
    )
    _, out, _ = do_evaluate(f"methods=[{methods}]", "bootstrap.draws=100", "discard_limit=0.6")
    said = [line for line in out.splitlines() if line.startswith("FMR 0.1: ")]
    assert said[0].startswith("FMR 0.1: noise is better than poor, by pAUC@0.6 (-0.")
    assert said[1].startswith("FMR 0.1: noise and random: no difference is shown, by pAUC@0.6 (-0.")
    table = read_parquet(Location(str(tmp_path / "evaluation" / "differences.parquet")))
    of_poor = table.filter(pc.and_(pc.equal(table["method"], "poor"), pc.equal(table["fmr"], 0.1)))
    areas = of_poor.filter(pc.equal(of_poor["figure"], "normalised_pauc_0.6")).to_pylist()
    assert [(row["other"], row["verdict"]) for row in areas] == [("random", "worse")]
    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv")).to_pylist()[0]
    name = "normalised_pauc_0.6"
    assert summary[f"{name}_low"] < summary[name] < summary[f"{name}_high"]
    assert f"{summary[f'{name}_low']:.3f}..{summary[f'{name}_high']:.3f}" in out
    assert "<td>noise is better</td>" in page_of(tmp_path)
    assert "Bands hold 95 % of the draws" in page_of(tmp_path)


def test_without_draws_nothing_is_called_better(do_evaluate, tmp_path):
    _, out, _ = do_evaluate("bootstrap.draws=0")
    assert "better than" not in out
    assert "Which is better" not in page_of(tmp_path)
    assert "Bands" not in page_of(tmp_path)


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
        ("fmr=[1e-4]", "fmr=0.0001 needs at least 10,000 nonmated comparisons, 1,650 are made"),
        ("comparisons.splits=/nowhere.parquet", "/nowhere.parquet"),
        ("groups.path=/nowhere.csv", "/nowhere.csv"),
    ],
)
def test_mistakes_end_in_one_message(do_evaluate, tmp_path, word, message):
    status, out, err = do_evaluate(word.replace("%s", f"{tmp_path}/noise.parquet"))
    assert (status, out) == (1, "")
    assert message in err
    assert not (tmp_path / "evaluation" / MANIFEST).exists()


@pytest.mark.parametrize("key", ["comparisons.splits", "report.labels", "report.severity"])
def test_other_content_of_a_file_is_another_evaluation(do_evaluate, tmp_path, key):
    rows, noise = made_rows()
    people = [f"p{number:04d}" for number in range(12)]

    def write(number):
        """All three files in one, each told apart by a number."""
        table = pa.table(
            {
                "image_id": rows.image_ids,
                "identity": [people[code] for code in rows.codes],
                "part": ["holdout"] * 60,
                "pseudo_label": 100 * (1 - noise) / number,
                "kind": ["noise"] * 60,
                "severity": noise / number,
            }
        )
        (tmp_path / "known.parquet").write_bytes(parquet_bytes(table))

    write(1)
    given = f"{key}={tmp_path}/known.parquet"
    assert do_evaluate(given)[0] == 0
    inputs = read_json(Location(str(tmp_path / "evaluation")) / MANIFEST)["inputs"]
    assert inputs.keys() == {"embeddings", "methods.known noise", key}
    assert do_evaluate(given)[0] == 0
    write(2)
    status, _, err = do_evaluate(given)
    assert status == 1
    assert f"is complete with another configuration, which differs in input {key}" in err


def page_of(folder):
    return (folder / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_headings_are_the_fractions_of_their_columns(do_evaluate, tmp_path):
    status, out, _ = do_evaluate("discard_fractions=[0, 0.025, 0.12]")
    assert status == 0
    head = next(line.split() for line in out.splitlines() if "pAUC@" in line)
    assert head == ["0%", "2.5%", "12%", "pAUC@0.3", "95", "%", "AOC"]
    assert re.findall(r'<th scope="col"[^>]*>([\d.]+%)', page_of(tmp_path))[:3] == head[:3]
    # Of sixty images one and seven leave: no point of the curves at 0, 5 and 10 per cent.
    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv"))
    table = [summary[f"evrc_{f:g}"][0].as_py() for f in (0, 0.025, 0.12)]
    curve = read_parquet(Location(str(tmp_path / "evaluation" / "curves.parquet")))
    points = curve.filter(pc.equal(curve["curve"], "evrc"))["error"].to_pylist()
    assert table[0] == points[0]
    assert len({*table, points[1], points[2]}) == 5


def test_long_names_stay_whole(do_evaluate, tmp_path):
    long, longer = "a name of thirty-two characters!", "a name of more than thirty-two characters"
    methods = ", ".join(
        f"{{name: '{name}', path: {tmp_path}/noise.parquet, column: noise, kind: severity}}"
        for name in (long, longer)
    )
    _, out, _ = do_evaluate(f"methods=[{methods}]")
    rows = [line for line in out.splitlines() if line.startswith("a name")]
    assert [row[:32] for row in rows] == [long, longer[:32]] * 2
    assert {len(line) for line in out.splitlines() if line.startswith(("a name", "random"))} == {
        len(rows[0])
    }


def test_a_model_without_splits_may_know_the_images(do_evaluate, tmp_path):
    said = "comparisons.splits is not given: known noise may have been trained on the compared"
    _, out, _ = do_evaluate()
    assert "may have been trained" not in out + page_of(tmp_path)
    model = f"methods=[{{name: known noise, path: {tmp_path}/noise.parquet, column: noise}}]"
    _, out, _ = do_evaluate(model, f"output={tmp_path}/other/evaluation")
    assert said in out
    assert said in page_of(tmp_path / "other")
    assert do_evaluate(model, f"output={tmp_path}/other/evaluation")[1] == out


def test_undefined_figures_are_a_dash_with_their_reason(do_evaluate, tmp_path):
    """With people whose images are all the same no comparison of one person is ever missed."""
    rows, _ = made_rows()
    centres = np.eye(12, 16, dtype=np.float32)
    write_embeddings(tmp_path / "easy", Rows(centres[rows.codes], rows.codes))
    status, out, _ = do_evaluate(f"embeddings={tmp_path}/easy")
    assert status == 0
    assert next(line for line in out.splitlines() if line.startswith("known")).split()[-2:] == [
        "-",
        "-",
    ]
    page = page_of(tmp_path)
    assert re.search(r"<dt>normalised pAUC; 1 would be no use</dt><dd>–</dd>", page)
    notes = re.findall("</table></div>\n<p>([^<]*)</p>", page)
    assert len(notes) == 2  # one for each false match rate
    reason = "no false non-match at zero discard, so nothing can be gained"
    for note in notes:
        assert f"No pAUC of known noise, random: {reason}." in note
        assert re.search("No AOC of known noise[^:]*: the error rate is undefined at", note)
    assert ">nan" not in page


def folder_of_faces(folder, rows, readable):
    """Write the images of the rows at places, the others as text that is no image."""
    for place, image_id in enumerate(rows.image_ids):
        file = folder / image_id
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = Image.new("RGB", (112, 112), (place, place, place))
        if place in readable:
            shade.save(file, format="PNG")
        else:
            file.write_text("no image")
    return [f"report.faces.path={folder}", "report.faces.kind=folder"]


def write_labels_and_severity(file, rows, noise, known):
    labels = np.where(known, 1 - noise, np.nan)
    table = {"image_id": rows.image_ids, "pseudo_label": labels}
    table |= {"kind": ["noise"] * 60, "severity": np.where(known, noise, np.nan)}
    file.write_bytes(parquet_bytes(pa.table(table)))
    return [f"report.labels={file}", f"report.severity={file}"]


def test_faces_that_cannot_be_read_are_passed_over(do_evaluate, tmp_path):
    rows, noise = made_rows()
    order = np.argsort(1 - noise)
    chosen = [int(order[int(rank * 59)]) for rank in (0.03, 0.97)]
    words = write_labels_and_severity(tmp_path / "l.parquet", rows, noise, np.full(60, True))
    words += folder_of_faces(tmp_path / "faces", rows, set(range(60)) - set(chosen))
    assert do_evaluate(*words)[0] == 0
    page = page_of(tmp_path)
    # The next image of about the same rank stands in; labels in [0, 2] have decimals.
    for name, row in (("poor", chosen[0]), ("good", chosen[1])):
        assert f"{name}: distance" in page
        shown = re.search(rf'aria-label="{name}: [^"]*the pseudo-label ([\d.]+)\.', page)[1]
        labels = np.sort(1 - noise)
        place = int(np.searchsorted(labels, 1 - noise[row]))
        assert shown in {f"{labels[place + step]:.2f}" for step in (-1, 1)}


def test_a_report_without_any_face_label_or_severity_says_so(do_evaluate, tmp_path):
    rows, noise = made_rows()
    words = write_labels_and_severity(tmp_path / "l.parquet", rows, noise, np.full(60, False))
    words += folder_of_faces(tmp_path / "faces", rows, set())
    assert do_evaluate(*words)[0] == 0
    page = page_of(tmp_path)
    for said in (
        "No image has a label.",
        "None of 24 images tried could be read.",
        "No compared image has a severity and a value of known noise.",
    ):
        assert said in page
    some = write_labels_and_severity(tmp_path / "l.parquet", rows, noise, np.arange(60) < 40)
    assert do_evaluate(*some, f"output={tmp_path}/b/evaluation")[0] == 0
    assert "40 images, one panel per degradation" in page_of(tmp_path / "b")


def test_given_similarities_need_no_embeddings(do_evaluate, tmp_path):
    rows, _ = made_rows()
    similarities = rows.embeddings @ rows.embeddings.T
    pairs = [(a, b) for a in range(60) for b in range(a)]
    ids = np.array(rows.image_ids)
    table = {
        "image_id_a": ids[[a for a, _ in pairs]],
        "image_id_b": ids[[b for _, b in pairs]],
        "mated": [bool(rows.codes[a] == rows.codes[b]) for a, b in pairs],
        "similarity": [similarities[pair] for pair in pairs],
    }
    pa_csv.write_csv(pa.table(table), str(tmp_path / "scored.csv"))
    scored = f"comparisons.scored={tmp_path}/scored.csv"
    _, wanted, _ = do_evaluate()
    status, out, err = do_evaluate("embeddings=null", scored, f"output={tmp_path}/scored")
    assert (status, "error" in err) == (0, False)
    assert out.splitlines()[:-1] == wanted.splitlines()[:-1]
    status, _, err = do_evaluate(scored)
    assert status == 2
    assert "give either embeddings or comparisons.scored" in err
    status, _, err = do_evaluate("embeddings=null", scored, "comparisons.splits=s.parquet")
    assert status == 2
    assert "one list is enough, got comparisons.splits and comparisons.scored" in err


def test_advice_says_what_a_threshold_does(do_evaluate, tmp_path):
    do_evaluate("advice.discard=[0.1]", "advice.fnmr=[0.2, 0.0001]", "bootstrap.draws=100")
    table = pa_csv.read_csv(str(tmp_path / "evaluation" / "advice.csv")).to_pylist()
    by = {(row["fmr"], row["aim"], row["asked"]): row for row in table}
    assert len(table) == len(by) == 2 * 3
    rows, noise = made_rows()
    similarities = rows.embeddings @ rows.embeddings.T
    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv")).to_pylist()
    threshold = next(row["threshold"] for row in summary if row["fmr"] == 0.1)
    mated = [(a, b) for a in range(60) for b in range(a) if rows.codes[a] == rows.codes[b]]

    def missed(quality):
        left = [p for p in mated if min(-noise[p[0]], -noise[p[1]]) >= quality]
        return np.mean([similarities[pair] < threshold for pair in left])

    share = by[0.1, "discard", 0.1]
    assert share["threshold"] == np.sort(-noise)[6]
    assert share["discarded"] == 0.1
    assert share["fnmr"] == pytest.approx(missed(share["threshold"]))
    assert share["low"] <= share["threshold"] <= share["high"]
    aim = by[0.1, "fnmr", 0.2]
    assert aim["fnmr"] == pytest.approx(missed(aim["threshold"]))
    assert aim["fnmr"] <= 0.2
    assert all(missed(quality) > 0.2 for quality in np.sort(-noise) if quality < aim["threshold"])
    page = page_of(tmp_path)
    assert "Which quality to ask for" in page
    assert "discard at most 10%" in page


def test_methods_that_say_the_same_are_shown_as_such(do_evaluate, tmp_path):
    methods = ", ".join(
        f"{{name: {name}, path: {tmp_path}/noise.parquet, column: noise, kind: severity,"
        f" sign: {sign}}}"
        for name, sign in (("noise", -1), ("twin", -1), ("opposite", 1))
    )
    do_evaluate(f"methods=[{methods}]", "bootstrap.draws=0")
    table = pa_csv.read_csv(str(tmp_path / "evaluation" / "correlations.csv")).to_pylist()
    found = {(row["method"], row["other"]): round(row["spearman"], 9) for row in table}
    assert found == {
        ("noise", "twin"): 1.0,
        ("noise", "opposite"): -1.0,
        ("twin", "opposite"): -1.0,
    }
    assert "noise and twin" in page_of(tmp_path)


@pytest.mark.parametrize("key", ["image_id", "identity"])
def test_groups_share_thresholds(do_evaluate, tmp_path, key):
    rows, noise = made_rows()
    names = np.where(rows.codes < 4, "small", "large")
    if key == "image_id":
        table = {"image_id": rows.image_ids, "group": names}
    else:
        people = [f"p{number:04d}" for number in range(12)]
        table = {"identity": people, "group": names[::5]}
    pa_csv.write_csv(pa.table(table), str(tmp_path / "groups.csv"))
    status, *_ = do_evaluate(f"groups.path={tmp_path}/groups.csv", f"groups.key={key}")
    assert status == 0
    found = read_parquet(Location(str(tmp_path / "evaluation" / "groups.parquet"))).to_pylist()
    by = {(r["fmr"], r["group"], r["discard_fraction"]): r for r in found}
    assert {group for _, group, _ in by} == {"small", "large"}
    row = by[0.1, "small", 0.3]
    assert (row["images"], row["mated"], row["nonmated"]) == (20, 40, 150)
    lowest = np.sort(-noise)[18]
    gone = -noise < lowest
    assert row["discarded"] == pytest.approx(np.mean(gone[names == "small"]))
    both = [by[0.1, group, 0.3] for group in ("small", "large")]
    assert sum(r["discarded"] * r["images"] for r in both) == pytest.approx(18)
    summary = pa_csv.read_csv(str(tmp_path / "evaluation" / "summary.csv")).to_pylist()
    threshold = next(r["threshold"] for r in summary if r["fmr"] == 0.1)
    similarities = rows.embeddings @ rows.embeddings.T
    mated = [(a, b) for a in range(20) for b in range(a) if rows.codes[a] == rows.codes[b]]
    left = [similarities[pair] < threshold for pair in mated if not gone[list(pair)].any()]
    assert row["fnmr"] == pytest.approx(np.mean(left))
    assert ">Groups</h2>" in page_of(tmp_path)


def test_groups_of_others(do_evaluate, tmp_path):
    (tmp_path / "groups.csv").write_text("image_id,group\nelsewhere,a\n")
    status, _, err = do_evaluate(f"groups.path={tmp_path}/groups.csv")
    assert status == 1
    assert "none of the 60 compared images has a group" in err
    (tmp_path / "groups.csv").write_text("image_id,group\nx,a\nx,b\n")
    _, _, err = do_evaluate(f"groups.path={tmp_path}/groups.csv")
    assert "image_id has a value more than once" in err


def test_other_recognisers_have_figures_of_their_own(do_evaluate, tmp_path):
    rows, _ = made_rows()
    unit = rows.embeddings + np.random.default_rng(0).standard_normal(rows.embeddings.shape) * 0.2
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    write_embeddings(tmp_path / "second", Rows(unit, rows.codes))
    others = f"others=[{{name: second, embeddings: {tmp_path}/second}}]"
    status, out, _ = do_evaluate(others, "bootstrap.draws=100")
    assert status == 0
    alone = f"embeddings={tmp_path}/second"
    do_evaluate(alone, f"output={tmp_path}/alone", "bootstrap.draws=100")
    both, one = (
        pa_csv.read_csv(str(tmp_path / name / "summary.csv")).to_pylist()
        for name in ("evaluation", "alone")
    )
    assert [row["recogniser"] for row in both] == ["own"] * 4 + ["second"] * 4
    for row, wanted in zip(both[4:], one, strict=True):
        assert {**row, "recogniser": "own"} == wanted
    assert "by second, FNMR in % at FMR 0.1, images discarded:" in out
    page = page_of(tmp_path)
    assert ">By recogniser</h2>" in page
    inputs = read_json(Location(str(tmp_path / "evaluation")) / MANIFEST)["inputs"]
    assert {"embeddings", "others.second"} <= inputs.keys()
    status, _, err = do_evaluate(others.replace("second,", "own,"))
    assert status == 2
    assert "recognisers need names of their own" in err


def test_faces_on_which_methods_disagree(do_evaluate, tmp_path):
    rows, _ = made_rows()
    methods = ", ".join(
        f"{{name: {name}, path: {tmp_path}/noise.parquet, column: noise, kind: severity,"
        f" sign: {sign}}}"
        for name, sign in (("noise", -1), ("opposite", 1))
    )
    words = folder_of_faces(tmp_path / "faces", rows, set(range(1, 60)))
    assert do_evaluate(f"methods=[{methods}]", *words)[0] == 0
    page = page_of(tmp_path)
    assert ">Where methods disagree</h2>" in page
    assert "100% and 2%" in page


def test_wrong_configurations(do_evaluate):
    for word, message in (
        ("bootstrap.draws=20", "expected at least 100 draws, or 0, got 20"),
        ("pair_quality=mean", "pair_quality=mean needs discarded=comparisons"),
        ("fmr=[0.1, 0.1]", "fmr names a rate twice"),
    ):
        status, _, err = do_evaluate(word)
        assert status == 2
        assert message in err
    assert do_evaluate("pair_quality=mean", "discarded=comparisons")[0] == 0


@pytest.mark.slow
def test_what_an_audit_found(do_evaluate, tmp_path, capsys):
    out = f"{tmp_path}/audit"
    words = [
        f"embeddings={tmp_path}/embeddings",
        f"output={out}",
        "thresholds.fmr=0.1",
        "thresholds.chance_fmr=0.3",
    ]
    assert main(AuditConfig, audit.run, words) == 0
    said = capsys.readouterr().out
    assert do_evaluate(f"report.audit={out}")[0] == 0
    page = page_of(tmp_path)
    assert ">The identities</h2>" in page
    number = re.search(r"([\d,]+) +images fit nowhere for their poor quality", said)[1]
    row = r"images fit nowhere for their poor quality</th><td[^>]*>([\d,]+)</td>"
    assert re.search(row, page)[1] == number
    status, _, err = do_evaluate(f"report.audit={tmp_path}/embeddings", f"output={tmp_path}/b")
    assert status == 1
    assert "expected a dataset written by audit" in err


def test_several_seeds_and_failures_are_told_on_the_page(do_evaluate, tmp_path):
    rows, noise = made_rows()
    write_noise(tmp_path / "other.parquet", rows, noise, np.arange(58))
    methods = (
        f"methods=[{{name: m, path: {tmp_path}/noise.parquet, column: noise, sign: -1,"
        f" seeds: [{tmp_path}/other.parquet]}}]"
    )
    status, out, _ = do_evaluate(methods, "failures=left_out", "bootstrap.draws=100")
    assert status == 0
    assert "left out, without a quality: 2" in out
    assert out.startswith("58 images of 12 identities")
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Means over several seeds: m (2)" in page
    assert "could not assess are left out for all" in page
    assert "Which quality to ask for" not in page
