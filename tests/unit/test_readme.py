"""What README.md shows of the Python API runs, word for word."""

import doctest
import re
from pathlib import Path

import pytest
from drawn_faces import face
from quality_models import made_model, write_model

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    """A folder with what the text takes for granted: a model and two images."""
    (tmp_path / "runs").mkdir()
    write_model(tmp_path / "runs" / "model", made_model())
    for number, name in enumerate(("a.jpg", "b.jpg")):
        face(number, 0).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_folder")
def test_examples_run():
    blocks = re.findall(r"^```python\n(>>>.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    test = doctest.DocTestParser().get_doctest(blocks[0], {}, "README.md", str(README), 0)
    found = runner.run(test)
    assert (found.attempted, found.failed) == (3, 0)
