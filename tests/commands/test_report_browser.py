"""The report in a real browser: it fits a phone and paper, draws, and asks nobody for anything.

Needs Debian's chromium (`apt-get install chromium`).
"""

import functools
import http.server
import re
import shutil
import subprocess
import threading

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Rows, write_embeddings
from PIL import Image

from sdd_ray import evaluate
from sdd_ray.settings import (
    BootstrapConfig,
    EvaluateConfig,
    MethodConfig,
    RayConfig,
    ReportConfig,
    SourceConfig,
)
from sdd_ray.store.run import parquet_bytes

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
]
WIDTHS = (390, 820, 1280)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed"),
    pytest.mark.usefixtures("ray_session"),
]

MEASURING = """<!doctype html><title>waiting</title><body><iframe src="report.html" style="
width:{width}px;height:1000px;border:0"></iframe><script>
document.querySelector("iframe").onload = (event) => {{
  const page = event.target.contentDocument;
  const broken = [...page.images].filter((image) => !image.naturalWidth).length;
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth, images: page.images.length, broken: broken,
    figures: page.querySelectorAll("svg").length, text: page.body.innerText.length}});
}};</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory, ray_session):
    """Folder of an evaluation with faces."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(5)
    codes, noise = np.repeat(np.arange(12), 5), rng.random(60)
    unit = rng.standard_normal((12, 16))[codes] + 2 * noise[:, None] * rng.standard_normal((60, 16))
    rows = Rows((unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32), codes)
    write_embeddings(folder / "embeddings", rows)
    table = pa.table({"image_id": rows.image_ids, "quality": -noise})
    (folder / "quality.parquet").write_bytes(parquet_bytes(table))
    for image_id in rows.image_ids:
        file = folder / "faces" / image_id
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
    names = ("a method with quite a long name", "another")
    evaluate.run(
        EvaluateConfig(
            embeddings=str(folder / "embeddings"),
            output=str(folder / "evaluation"),
            methods=tuple(
                MethodConfig(name=name, path=str(folder / "quality.parquet"), sign=sign)
                for name, sign in zip(names, (1, -1), strict=True)
            ),
            fmr=(0.1, 0.01),
            bootstrap=BootstrapConfig(draws=100),
            report=ReportConfig(faces=SourceConfig(kind="folder", path=str(folder / "faces"))),
            ray=RayConfig(dashboard=False),
        )
    )
    return folder / "evaluation"


@pytest.fixture
def served(report):
    """The folder on loopback: its address, and what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(report))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def browse(tmp_path, *words):
    """Run the browser with a profile of its own; return what it prints."""
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path}/profile", *words]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_the_screen_and_is_whole(report, served, tmp_path, width):
    address, asked = served
    (report / f"measure_{width}.html").write_text(MEASURING.format(width=width))
    dom = browse(
        tmp_path, "--virtual-time-budget=10000", "--dump-dom", f"{address}/measure_{width}.html"
    )
    found = re.search(r"<title>(\{.*?\})</title>", dom)
    assert found, dom[:500]
    measured = {key: int(value) for key, value in re.findall(r'"(\w+)":(\d+)', found[1])}
    assert measured["width"] <= width
    assert measured["broken"] == 0
    assert measured["images"] == 24 + 12
    assert measured["figures"] == 5
    assert measured["text"] > 2000
    assert set(asked) <= {f"/measure_{width}.html", "/report.html", "/favicon.ico"}


def test_screenshot_and_paper_show_something(report, tmp_path):
    page = (report / "report.html").as_uri()
    picture, paper = tmp_path / "page.png", tmp_path / "page.pdf"
    browse(tmp_path, "--window-size=1280,3000", f"--screenshot={picture}", page)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (3000, 1280, 3)
    # Text and figures all the way down, and the blue of the model's curve among them.
    for part in np.array_split(pixels, 5):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 20
    blue = (pixels == (0, 114, 178)).all(axis=2)
    assert blue.sum() > 200
    browse(tmp_path, f"--print-to-pdf={paper}", page)
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12
