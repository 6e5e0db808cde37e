"""Event files, read back by the published layout of TFRecords and of protocol buffers."""

import math
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from sdd_ray.engine.event_files import EventFile
from sdd_ray.errors import OutputError
from sdd_ray.store.location import Location


def masked_crc(content):
    """CRC-32C bit by bit, masked as TFRecord does (Castagnoli's polynomial, reversed)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(content):
    position = 0
    while position < len(content):
        head = content[position : position + 8]
        [length] = struct.unpack("<Q", head)
        body = content[position + 12 : position + 12 + length]
        checks = content[position + 8 : position + 12] + content[position + 12 + length :][:4]
        assert struct.unpack("<II", checks) == (masked_crc(head), masked_crc(body))
        yield body
        position += 16 + length
    assert position == len(content)


def varint(content, position):
    value = shift = 0
    while True:
        byte = content[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def fields(message):
    """Yield (number, value) of a protocol buffer's fields."""
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        if key & 7 == 0:
            value, position = varint(message, position)
        else:
            length, position = {1: (8, position), 5: (4, position)}.get(key & 7) or varint(
                message, position
            )
            value, position = message[position : position + length], position + length
        yield key >> 3, value


def events(content):
    """Return what a file holds: [(step, {tag: value}), ...]."""
    first, *others = [list(fields(record)) for record in records(content)]
    assert dict(first)[3] == b"brain.Event:2"
    found = []
    for event in map(dict, others):
        assert abs(struct.unpack("<d", event[1])[0] - time.time()) < 60
        values = [dict(fields(value)) for number, value in fields(event[5]) if number == 1]
        curves = {v[1].decode(): struct.unpack("<f", v[2])[0] for v in values}
        found.append((event.get(2, 0), curves))
    return found


def written(folder):
    return [(folder / name).read_bytes() for name in folder.names()]


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Location(str(tmp_path / "run" / "events"))
    return Location(f"s3://{request.getfixturevalue('s3_bucket')}/run/events")


def test_check_sum_of_the_test_is_crc_32c():
    # The check value of CRC-32C, which the masked form is made of.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_file_is_complete_after_every_step(folder):
    added = [
        (0, {"loss": 12.5, "learning_rate": 0.25}),
        (1, {"validation/loss": 3.0}),
        (2**40, {"loss": -1e30, "spearman": 0.5}),
        (3, {}),
    ]
    with EventFile(folder) as file:
        for number, (step, figures) in enumerate(added, 1):
            file.add(step, figures)
            [content] = written(folder)
            found = events(content)
            assert [step for step, _ in found] == [step for step, _ in added[:number]]
            for (_, curves), (_, wanted) in zip(found, added, strict=False):
                assert curves == pytest.approx(wanted)
    assert written(folder) == [content]


def test_figures_that_are_no_numbers_are_written(tmp_path):
    folder = Location(str(tmp_path))
    with EventFile(folder) as file:
        file.add(1, {"spearman": math.nan, "loss": math.inf})
    [(_, curves)] = events(*written(folder))
    assert math.isnan(curves["spearman"])
    assert curves["loss"] == math.inf


def test_resumed_run_writes_beside_the_first(folder):
    for step in range(3):  # within one second
        with EventFile(folder) as file:
            file.add(step, {"loss": float(step)})
    found = sorted(event for content in written(folder) for event in events(content))
    assert found == [(step, {"loss": float(step)}) for step in range(3)]


def test_tensorboard_takes_the_files_for_its_own(tmp_path):
    with EventFile(Location(str(tmp_path))) as file:
        file.add(0, {"loss": 1.0})
    [name] = [path.name for path in tmp_path.iterdir()]
    assert "tfevents" in name  # what TensorBoard looks for


def test_nothing_is_left_on_the_local_disk(tmp_path, monkeypatch):
    (tmp_path / "aside").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "aside"))
    with EventFile(Location(str(tmp_path / "events"))) as file:
        file.add(0, {"loss": 1.0})
        assert list((tmp_path / "aside").iterdir())
    assert list((tmp_path / "aside").iterdir()) == []
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.add(1, {"loss": 1.0})


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        EventFile(Location(str(tmp_path / "file" / "events"))) as file,
        pytest.raises(OutputError, match="file/events"),
    ):
        file.add(0, {"loss": 1.0})


def test_writer_is_imported_when_it_is_needed():
    code = "import sys, sdd_ray.engine.event_files; print('tensorboardX' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
