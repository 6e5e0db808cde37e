"""Fixtures of the tests that label whole datasets."""

import pytest
from label_runs import Labeller

from sdd_ray.engine import label_plan


@pytest.fixture
def do_label(tmp_path):
    return Labeller(tmp_path)


@pytest.fixture(scope="module")
def small_shards():
    """Cut the plan, which is made on the driver, into several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_plan, "ROWS_PER_SHARD", 50)
        yield
