"""The cluster files fit Ray's schema, the package's Ray, and the rules of a safe cluster."""

import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [REPOSITORY / "clusters" / name for name in ("gpu.yaml", "onprem.yaml")]


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def cluster(request):
    return yaml.safe_load(request.param.read_text())


def start_commands(cluster):
    lines = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [line for line in lines if "ray start" in line]


def ray_pin():
    text = (REPOSITORY / "pyproject.toml").read_text()
    [(lower, upper)] = re.findall(r'"ray\[[a-z,]+\]>=([\d.]+),<([\d.]+)"', text)
    return lower, upper


def test_ray_accepts_the_file(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_misspelt_key_would_be_noticed(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster["idle_timeout"] = cluster.pop("idle_timeout_minutes", 5)
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_version_of_ray_is_pinned_to_that_of_the_package(file):
    lower, upper = ray_pin()
    text = file.read_text()
    versions = re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)|\]==(\d+\.\d+\.\d+)", text)
    assert versions
    for version in (first or second for first, second in versions):
        assert lower.split(".") <= version.split(".")[:2] < upper.split(".")


def test_dashboard_is_on_the_loopback_interface(cluster):
    [head] = [line for line in start_commands(cluster) if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head


def test_every_node_asks_for_the_token(cluster):
    in_container = "--env RAY_AUTH_MODE=token" in cluster.get("docker", {}).get("run_options", [])
    lines = start_commands(cluster)
    assert len(lines) == 2
    assert all(in_container or "RAY_AUTH_MODE=token" in line for line in lines)
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105 - a path


def test_head_does_no_work(cluster):
    if "head_node_type" in cluster:
        head = cluster["available_node_types"][cluster["head_node_type"]]
        assert head["resources"] == {"CPU": 0, "GPU": 0}
    else:
        [head] = [line for line in start_commands(cluster) if "--head" in line]
        assert "--num-cpus=0" in head
        assert "--num-gpus=0" in head


def test_package_is_installed_from_the_synced_folder(cluster):
    [folder] = [target for target, origin in cluster["file_mounts"].items() if origin == "."]
    assert any(f"{folder}[" in command for command in cluster["setup_commands"])
    extras = re.findall(r"\[([a-z,]+)\]'$", " ".join(cluster["setup_commands"]))
    declared = (REPOSITORY / "pyproject.toml").read_text()
    assert extras
    assert all(f"\n{extra} = [" in declared for extra in extras[0].split(","))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_secret_is_in_the_file(file):
    text = file.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", text)


def test_gpu_workers_start_from_nothing():
    cluster = yaml.safe_load(FILES[0].read_text())
    workers = cluster["available_node_types"]["gpu_worker"]
    assert workers["min_workers"] >= 1  # commands use what is up when they start
    assert workers["max_workers"] == cluster["max_workers"]
    assert workers["resources"]["GPU"] == 1
