"""A Ray of its own whose workers take a server on this machine for S3."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from faulty_s3 import ENVIRONMENT, s3_server
from ray.cluster_utils import Cluster

from sdd_ray.store import s3_client


@contextmanager
def ray_on_s3() -> Iterator[str]:
    """Give out the address of a Ray of two CPUs; this process takes the server for S3, too."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=server).create_bucket(Bucket="bucket")
        s3_client.client.cache_clear()
        arguments = {
            "num_cpus": 2,
            "object_store_memory": 200 * 2**20,
            "include_dashboard": False,
        }
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        try:
            yield cluster.address
        finally:
            cluster.shutdown()
            s3_client.client.cache_clear()
