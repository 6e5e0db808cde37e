"""Labels of 7,000 real faces by two recognisers against scipy over all pairs.

pytest -m slow tests/engine/test_label_real.py -s      prints the errors
"""

import numpy as np
import pytest
from made_datasets import Rows, read_rows, write_embeddings
from real_faces import embedded_by_a, embedded_by_b, faces
from scipy.stats import spearmanr, wasserstein_distance

from sdd_ray import label
from sdd_ray.config import load_tree
from sdd_ray.engine import labelling
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import open_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("ray_session"),
]

SAMPLES = (512, 1024, 2048, 3000)  # smaller than the set, which is too small for the usual ones


@pytest.fixture(scope="module", params=["a", "b"])
def embedded(request, shared_data):
    """The recogniser's name, unit embeddings of all faces, their people, distances by scipy."""
    pytest.importorskip("onnxruntime")
    images, codes, _ = faces(shared_data / "cfp112.tar")
    assert images.shape == (7000, 112, 112, 3)
    weights = shared_data / "recognizers"
    if request.param == "a":
        unit = embedded_by_a(images, weights / "mobilefacenet_a.onnx")
    else:
        unit = embedded_by_b(images, weights / "mobilefacenet_b.ckpt")
    wanted = np.empty(len(unit))
    exact = unit.astype(np.float64)
    for row in range(len(unit)):
        similarity = exact @ exact[row]
        same = codes == codes[row]
        mated = same.copy()
        mated[row] = False
        wanted[row] = wasserstein_distance(similarity[mated], similarity[~same])
    return request.param, unit, codes, wanted


@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 1e-2])
def test_all_labels_are_within_their_bounds(embedded, tmp_path, monkeypatch, tolerance):
    name, unit, codes, wanted = embedded
    monkeypatch.setattr(labelling, "SAMPLE_SIZES", SAMPLES)
    found, results = labels(tmp_path, unit, codes, exact={"tolerance": tolerance})
    error = np.abs(found["distance"] - wanted)
    print(  # noqa: T201 - shown by -s
        f"\nrecogniser {name}, tolerance {tolerance:g}: worst error {error.max():.1e}, RMS"
        f" {np.sqrt(np.mean(error**2)):.1e}, largest bound {found['error_bound'].max():.2e},"
        f" Spearman {spearmanr(found['distance'], wanted)[0]:.6f}, {results['settled_by']},"
        f" AUC {results['similarities']['auc']:.5f}"
    )
    assert (error <= found["error_bound"] + 1e-6).all()
    assert found["error_bound"].max() <= tolerance
    if tolerance == 0:
        assert error.max() < 1e-5


def test_the_papers_estimate_beside_it(embedded, tmp_path):
    name, unit, codes, wanted = embedded
    found, _ = labels(tmp_path, unit, codes, method="sampled")
    error = np.abs(found["distance"] - wanted)
    print(  # noqa: T201 - shown by -s
        f"\nrecogniser {name}, sampled: worst {error.max():.1e}, RMS"
        f" {np.sqrt(np.mean(error**2)):.1e}, Spearman {spearmanr(found['distance'], wanted)[0]:.6f}"
    )
    assert np.sqrt(np.mean(error**2)) < 0.02


def labels(folder, unit, codes, **keys):
    embeddings = write_embeddings(folder / "embeddings", Rows(unit, codes), 7)
    tree = {"embeddings": embeddings, "output": str(folder / "labels"), "duplicates": "keep"}
    label.run(load_tree(LabelConfig, tree | keys))
    rows = read_rows(tree["output"], "label", ["image_id", "distance", "error_bound"])
    columns = {
        key: np.array([row[key] for row in rows], float) for key in ("distance", "error_bound")
    }
    return columns, open_dataset(tree["output"], ["label"]).manifest["results"]
