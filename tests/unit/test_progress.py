"""The progress line: counts, rate and time left, rewritten on a terminal and repeated in a log."""

import io

import pytest

from sdd_ray.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_line_in_the_middle(clock):
    progress = Progress("embed", 10_000, stream=io.StringIO())
    assert progress.line() == "embed: 0 of 10,000 images (0 %)"
    clock[0] += 10
    progress.update(1000)
    assert progress.line() == "embed: 1,000 of 10,000 images (10 %), 100/s, 1 min 30 s left"
    progress.update(500, rejected=12)
    assert progress.line() == (
        "embed: 1,500 of 10,000 images (15 %), 12 rejected, 150/s, 57 s left"
    )


def test_line_at_the_end(clock):
    progress = Progress("label", 36_000, unit="rows", stream=io.StringIO())
    clock[0] += 7260
    progress.update(36_000)
    assert progress.line() == "label: 36,000 of 36,000 rows (100 %), 5/s, 2 h 01 min"


def test_items_of_an_earlier_run_do_not_count_for_the_rate(clock):
    progress = Progress("embed", 1000, done=500, stream=io.StringIO())
    assert progress.line() == "embed: 500 of 1,000 images (50 %)"
    clock[0] += 10
    progress.update(100)
    assert progress.line() == "embed: 600 of 1,000 images (60 %), 10/s, 40 s left"


def test_items_that_turn_out_to_be_of_an_earlier_run_do_not_either(clock):
    progress = Progress("sum", 1000, stream=io.StringIO())
    progress.found(500)
    clock[0] += 10
    progress.update(100)
    assert progress.line() == "sum: 600 of 1,000 images (60 %), 10/s, 40 s left"


def test_nothing_to_do(clock):
    assert Progress("embed", 0, stream=io.StringIO()).line() == "embed: 0 of 0 images (100 %), 0 s"
    clock[0] += 1
    done = Progress("embed", 5, done=5, stream=io.StringIO())
    assert done.line() == "embed: 5 of 5 images (100 %), 0 s"


def test_terminal_line_is_rewritten_twice_a_second(clock):
    stream = Terminal()
    progress = Progress("embed", 100, stream=stream)
    for _ in range(20):
        clock[0] += 0.1
        progress.update(1)
    progress.close()
    *rewritten, last, rest = stream.getvalue().replace("\r", "\r\n").split("\n")
    assert 3 <= len(rewritten) <= 4
    assert all(text.endswith("\r") and len(text) == 80 for text in rewritten)
    assert last.startswith("embed: 20 of 100 images (20 %)")
    assert rest == ""


def test_log_gets_a_line_every_ten_seconds(clock):
    stream = io.StringIO()
    progress = Progress("embed", 100, stream=stream)
    for _ in range(35):
        clock[0] += 1
        progress.update(1)
    assert "\r" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10", "20", "30"]
    progress.close()
    assert stream.getvalue().splitlines()[-1] == progress.line()


def test_goes_to_the_error_stream(capsys):
    Progress("embed", 1).close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("embed: 0 of 1 images")
