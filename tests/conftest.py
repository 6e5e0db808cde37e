"""Fixtures shared by all tests."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


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
