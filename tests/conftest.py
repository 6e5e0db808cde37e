"""Fixtures shared by all tests, and what Ray reads from the environment when it is imported."""

import copy
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

for _name, _value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}.items():
    os.environ.setdefault(_name, _value)


# A busy machine is no reason to fail, and a submission must not fail by a lucky draw: new examples
# are looked for on people's own machines.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of four logical CPUs for all tests that need one."""
    import ray

    ray.init(
        address="local",  # never a cluster that a developer happens to run
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(autouse=True)
def _fresh_data_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put back Ray Data's context, which is one for the process, after tests that may change it."""
    if request.path.parent.name not in ("engine", "commands"):
        yield
        return
    from ray.data.context import DataContext

    saved = copy.deepcopy(DataContext.get_current())
    yield
    DataContext._set_current(saved)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real material, or skip: never part of the project (SDD_RAY_TEST_DATA)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SDD_RAY_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}; set SDD_RAY_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def cfp_images(shared_data: Path) -> NDArray[np.uint8]:
    """Twenty real aligned faces of CFP, (20, 112, 112, 3) RGB."""
    images = []
    with tarfile.open(shared_data / "cfp112.tar") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(content).convert("RGB")))
            if len(images) == 20:
                break
    return np.stack(images)
