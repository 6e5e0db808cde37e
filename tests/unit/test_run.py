"""Outputs while they are written: begun, resumed, complete, and never overwritten."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from sdd_ray.columns import REJECTS
from sdd_ray.errors import OutputError
from sdd_ray.settings import LabelConfig, ScoreConfig
from sdd_ray.store.dataset import open_dataset, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import (
    OutputRun,
    PartRecord,
    Reject,
    part_name,
    peak_memory_mib,
    read_records,
    record_from_json,
    versions,
    write_part,
)


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    """Where an output may be written, local and on S3."""
    if request.param == "local":
        return Location(str(tmp_path / "out"))
    return Location(f"s3://{request.getfixturevalue('s3_bucket')}/deep/out")


@pytest.fixture
def local(tmp_path):
    return Location(str(tmp_path / "out"))


def config(**changes):
    return LabelConfig(**{"embeddings": "e", "output": "o", **changes})


def begin(place, inputs=None, **changes):
    return OutputRun(place, "label", config(**changes), inputs or {"embeddings": "abc"})


def rows(*ids):
    return pa.table({"image_id": pa.array(ids, pa.string())})


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_begun_resumed_and_complete(output):
    run = begin(output)
    assert not run.is_complete
    assert output.names() == ["_incomplete.json"]
    first = write_part(output, "part-0", rows("a", "b"), [Reject("c", "broken", "why")])
    assert sorted(output.names()) == ["_incomplete.json", "_work", "part-0.parquet"]

    again = begin(output)
    assert not again.is_complete
    assert again.finished() == {"part-0": first}
    second = write_part(output, "part-1", rows("d"))
    assert read_records(output) == {"part-0": first, "part-1": second}
    manifest = again.complete([first, second], {"note": 1}, [Reject("e", "no_identity")])

    assert output.names() == [
        "manifest.json",
        "part-0.parquet",
        "part-1.parquet",
        "rejects.parquet",
    ]
    assert manifest["counts"] == {
        "rows_in": 5,
        "rows_out": 3,
        "rejected": {"broken": 1, "no_identity": 1},
    }
    assert manifest["results"] == {"note": 1}
    assert manifest["inputs"] == {"embeddings": "abc"}
    assert json.loads((output / "manifest.json").read_bytes()) == manifest
    assert read_parquet(output / "rejects.parquet").to_pylist() == [
        {"image_id": "c", "reason": "broken", "detail": "why"},
        {"image_id": "e", "reason": "no_identity", "detail": ""},
    ]

    assert begin(output).is_complete
    dataset = open_dataset(output.uri, ["label"])
    assert dataset.read(["image_id"])["image_id"].to_pylist() == ["a", "b", "d"]
    assert dataset.digest == manifest["digest"]


def test_record_holds_what_became_of_the_part(local):
    record = write_part(local, "p", rows("a", "b"), [Reject("c", "broken")])
    content = (local / "p.parquet").read_bytes()
    assert (record.name, record.rows_in, record.rows_out) == ("p", 3, 2)
    assert record.digest == hashlib.sha256(content).hexdigest()
    assert record.peak_memory_mib > 10
    assert record_from_json((local / "_work" / "parts" / "p.json").read_bytes()) == record
    assert write_part(local, "p", rows("a"), rows_in=7).rows_in == 7
    assert read_records(local)["p"].rows_out == 1


def test_no_records_before_the_first_part(local):
    assert read_records(local) == {}


def test_part_without_its_record_is_not_finished(local, monkeypatch):
    begin(local)
    write = Location.write_bytes

    def killed(place, content):
        if place.uri.endswith(".json"):
            raise KeyboardInterrupt
        write(place, content)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            write_part(local, "part-0", rows("a"))
    assert (local / "part-0.parquet").exists()
    assert begin(local).finished() == {}


def test_equal_parts_have_equal_digests_in_any_order(tmp_path):
    digests = []
    for name, order in (("x", (0, 1, 2)), ("y", (2, 0, 1))):
        place = Location(str(tmp_path / name))
        run = begin(place)
        records = [write_part(place, f"part-{i}", rows(f"id{i}")) for i in order]
        digests.append(run.complete(records)["digest"])
    assert digests[0] == digests[1]

    place = Location(str(tmp_path / "z"))
    run = begin(place)
    records = [write_part(place, f"part-{i}", rows(f"id{i + 1}")) for i in range(3)]
    assert run.complete(records)["digest"] != digests[0]


def test_rejects_are_sorted_whatever_the_order_of_parts(local):
    run = begin(local)
    late = write_part(local, "b", rows(), [Reject("z", "r"), Reject("b", "s")])
    early = write_part(local, "a", rows(), [Reject("m", "r"), Reject("b", "r")])
    run.complete([late, early], extra_rejects=[Reject("c", "r")])
    table = read_parquet(local / "rejects.parquet")
    assert table.schema.equals(REJECTS)
    keys = list(zip(table["image_id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert keys == [("b", "r"), ("b", "s"), ("c", "r"), ("m", "r"), ("z", "r")]


def test_output_without_rejects_has_an_empty_list_of_them(local):
    run = begin(local)
    run.complete([write_part(local, "a", rows("x"))])
    table = read_parquet(local / "rejects.parquet")
    assert table.num_rows == 0
    assert table.schema.equals(REJECTS)


def test_manifest_is_the_last_file_written(local, monkeypatch):
    run = begin(local)
    record = write_part(local, "a", rows("x"))
    written = []
    write = Location.write_bytes

    def note(place, content):
        written.append(place.uri.rsplit("/", 1)[1])
        write(place, content)

    monkeypatch.setattr(Location, "write_bytes", note)
    run.complete([record])
    assert written == ["rejects.parquet", "manifest.json"]


def test_run_killed_between_manifest_and_cleaning_is_complete(local, monkeypatch):
    run = begin(local)
    record = write_part(local, "a", rows("x"))
    with monkeypatch.context() as patch:
        patch.setattr(OutputRun, "_clean", lambda self: None)
        run.complete([record])
    assert "_work" in local.names()
    assert begin(local).is_complete
    assert local.names() == ["a.parquet", "manifest.json", "rejects.parquet"]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "sampled"}, "differs in method"),
        ({"duplicates": "keep", "scaling": "none"}, "differs in duplicates, scaling"),
        (
            {"exact": {"seed": 4, "tolerance": 0.5}},
            "differs in exact.seed, exact.tolerance",
        ),
        ({"inputs": {"embeddings": "xyz"}}, "differs in input embeddings"),
        ({"inputs": {"embeddings": "abc", "other": "x"}}, "differs in input other"),
    ],
)
def test_other_configuration_is_refused_by_its_key(tmp_path, local, complete, changes, named):
    run = begin(local)
    record = write_part(local, "a", rows("x"))
    if complete:
        run.complete([record])
    before = snapshot(tmp_path)
    state = "is complete" if complete else "was begun"
    with pytest.raises(OutputError, match=f"{state} with another configuration.*{named}"):
        begin(local, **changes)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("complete", [True, False])
def test_output_of_another_command_is_refused(local, complete):
    run = begin(local)
    part = write_part(local, "a", rows("x"))
    if complete:
        run.complete([part])
    with pytest.raises(OutputError, match="is of label"):
        OutputRun(local, "score", ScoreConfig(model="m", output="o"), {"embeddings": "abc"})


def test_where_and_how_a_command_runs_does_not_matter(local):
    begin(local)
    changes = {"output": "elsewhere", "ray": {"num_cpus": 2}, "resources": {"workers": 5}}
    resumed = begin(local, **changes)
    resumed.complete([write_part(local, "a", rows("x"))])
    assert begin(local, output="third").is_complete


def test_input_named_by_its_digest_may_lie_anywhere(local):
    begin(local, embeddings="here")
    moved = begin(local, embeddings="s3://there")
    moved.complete([write_part(local, "a", rows("x"))])
    assert begin(local, embeddings="/elsewhere").is_complete


@pytest.mark.parametrize("name", ["notes.txt", "part-0.parquet", "sub/file"])
def test_files_of_others_are_never_touched(tmp_path, output, name):
    (output / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds files that sdd_ray did not write"):
        begin(output)
    assert (output / name).read_bytes() == b"mine"
    assert output.names() == [name.split("/", maxsplit=1)[0]]


def test_a_file_is_no_output_folder(local):
    local.write_bytes(b"mine")
    with pytest.raises(OutputError, match=local.uri):
        begin(local)
    assert local.read_bytes() == b"mine"


def test_an_empty_folder_is_used(tmp_path, local):
    (tmp_path / "out").mkdir()
    assert not begin(local).is_complete


@pytest.mark.parametrize("name", ["manifest.json", "_incomplete.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"a": 1}', b"\xff\xfe"])
def test_foreign_or_damaged_state_files_are_refused(local, name, content):
    (local / name).write_bytes(content)
    with pytest.raises(OutputError, match=f"out/{name} is damaged, or sdd_ray did not write it"):
        begin(local)
    assert (local / name).read_bytes() == content


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    place = Location(str(tmp_path / "file" / "out"))
    with pytest.raises(OutputError, match=r"cannot write .*file/out/_incomplete\.json"):
        begin(place)


def test_seconds_of_all_attempts_are_summed(local, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    first = begin(local)
    clock[0] += 5
    first.pause()
    clock[0] += 100
    second = begin(local)
    clock[0] += 2.5
    assert second.complete([write_part(local, "a", rows("x"))])["seconds"] == 7.5


def test_time_of_a_run_that_was_killed_counts_up_to_its_last_note(local, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    killed = begin(local)
    for _ in range(7):
        clock[0] += 20
        killed.note_time()
    begin(local)  # and killed at once
    found = begin(local).complete([write_part(local, "a", rows("x"))])
    assert (found["seconds"], found["attempts"]) == (120.0, 3)


def test_manifest_says_what_made_the_output(local):
    run = begin(local, exact={"seed": 3})
    for name in ("a.parquet", "b.safetensors"):
        (local / name).write_bytes(b"x")
    other = PartRecord("b", 1, 2, "e", 45, suffix=".safetensors")
    manifest = run.complete([PartRecord("a", 1, 1, "d", 123), other])
    assert manifest["parts"] == {"a.parquet": 1, "b.safetensors": 2}
    assert manifest["command"] == "label"
    assert manifest["config"]["exact"] == {"tolerance": 1e-3, "deviations": 4.0, "seed": 3}
    assert manifest["peak_memory_mib"]["worker"] == 123
    assert manifest["versions"] == versions()
    assert {"sdd_ray", "python", "numpy", "pyarrow", "torch"} <= set(versions())
    assert manifest["finished"].endswith("+00:00")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_in_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak_memory_mib() == pytest.approx(peak_kib / 1024, abs=16)


def test_corrected_command_takes_over_where_nothing_was_done(local):
    begin(local, method="sampled")
    corrected = begin(local, method="exact")
    corrected.complete([write_part(local, "a", rows("x"))])
    assert begin(local, method="exact").is_complete


def test_parts_that_are_not_there_make_no_complete_output(local):
    run = begin(local)
    here = write_part(local, "a", rows("x"))
    with pytest.raises(OutputError, match=r"1 of 2 finished parts .* first b\.parquet; .* shared"):
        run.complete([here, PartRecord("b", 1, 1, "d", 1)])
    assert not (local / "manifest.json").exists()


@pytest.mark.parametrize("inputs", [{"embeddings": "xyz"}, {"embeddings": "abc"}])
def test_corrected_command_does_not_take_what_the_mistaken_one_listed(output, inputs):
    mistaken = begin(output)
    for name in ("index.parquet", "listing.json"):
        (mistaken.work / name).write_bytes(b"x")
    corrected = begin(output, inputs=inputs, method="sampled")
    assert not corrected.is_complete
    assert not (corrected.work / "listing.json").exists()


def test_work_of_another_configuration_is_kept(tmp_path, local):
    (begin(local).work / "checkpoints" / "epoch-1").write_bytes(b"x")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="was begun with another configuration"):
        begin(local, method="sampled")
    assert snapshot(tmp_path) == before


def test_forgotten_part_is_not_finished(output):
    run = begin(output)
    kept = write_part(output, "a", rows("x"))
    write_part(output, "b", rows("y"))
    run.forget("b")
    assert run.finished() == {"a": kept}
    assert not (output / "b.parquet").exists()


def test_numbered_parts_are_in_order_of_name():
    assert part_name(7) == "part-000007"
    names = [part_name(number) for number in (9, 10, 99_999, 100_000)]
    assert names == sorted(names)
