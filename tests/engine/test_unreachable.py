"""Images that an earlier attempt could not reach: whose parts are done again."""

import pyarrow.parquet as pq
import pytest
from drawn_faces import face

from sdd_ray import columns
from sdd_ray.engine.unreachable import found_again
from sdd_ray.errors import InputError
from sdd_ray.formats.items import Item, to_table
from sdd_ray.formats.source import open_source
from sdd_ray.settings import SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import PartRecord, Reject, part_name

NAMES = [f"p/{number:02d}.png" for number in range(40)]


@pytest.fixture
def faces(tmp_path):
    """A folder in which none of the listed images is, and its listing of ten images a part."""
    (tmp_path / "faces" / "p").mkdir(parents=True)
    with pq.ParquetWriter(tmp_path / "index", columns.INDEX) as writer:
        for first in range(0, 40, 10):
            part = to_table(Item(name) for name in NAMES[first : first + 10])
            writer.write_table(part, row_group_size=10)
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path / "faces")))
    return tmp_path / "faces", source, Location(str(tmp_path / "index"))


def record(number, lost, reason="unreadable"):
    return PartRecord(
        part_name(number), 10, 10 - len(lost), "d", 1, [Reject(n, reason, "") for n in lost]
    )


def test_only_parts_in_which_an_image_is_back_are_done_again(faces, capsys):
    folder, source, index = faces
    records = [
        record(0, NAMES[:10]),
        record(1, [NAMES[12], NAMES[17]]),
        None,
        record(3, [NAMES[35]], "truncated"),
    ]
    assert found_again(source, index, records) == set()
    assert "look again: 12 of 12 images" in capsys.readouterr().err
    face(0, 0).save(folder / NAMES[17])
    face(0, 1).save(folder / NAMES[35])  # it was there before, and is no reason
    assert found_again(source, index, records) == {records[1].name}
    (folder / NAMES[3]).write_bytes(b"there, though no image")
    assert found_again(source, index, records) == {records[0].name, records[1].name}


def test_a_file_that_cannot_be_read_is_still_away(faces, monkeypatch):
    _, source, index = faces

    def away(self, items):
        raise InputError("the archive cannot be read")

    monkeypatch.setattr(type(source), "fetch", away)
    assert found_again(source, index, [record(0, NAMES[:2])]) == set()


def test_nothing_is_opened_where_nothing_was_lost(faces):
    _, source, index = faces
    missing = index / "not there"
    assert found_again(source, missing, [record(0, []), None]) == set()
