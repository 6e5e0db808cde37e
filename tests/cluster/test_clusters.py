"""The cluster files fit Ray's schema, the package's Ray, and the rules of a safe cluster."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

import sdd_ray
from sdd_ray.config import load_config
from sdd_ray.settings import EmbedConfig

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
    assert workers["min_workers"] == 0  # commands wait for nodes: ray.wait_for_nodes_s
    assert workers["max_workers"] == cluster["max_workers"]
    assert workers["resources"]["GPU"] == 1


KUBERAY = REPOSITORY / "clusters" / "kuberay.yaml"


@pytest.fixture
def job():
    return yaml.safe_load(KUBERAY.read_text())["spec"]


def pods(job):
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_kubernetes_gets_the_ray_of_the_package(job):
    lower, upper = ray_pin()
    version = job["rayClusterSpec"]["rayVersion"]
    assert lower.split(".") <= version.split(".")[:2] < upper.split(".")
    assert f"rayproject/ray:{version}-" in KUBERAY.read_text()
    images = {container["image"] for pod in pods(job) for container in pod["containers"]}
    assert images == {f"registry.example/sdd_ray:{sdd_ray.__version__}"}


def test_pods_ask_for_the_token_and_have_no_rights_to_spare(job):
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    start = job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert start["num-cpus"] == "0"
    assert "dashboard-host" not in start, "the pod that hands in the job could not reach it"
    for pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["readinessProbe"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            [shared] = [v for v in pod["volumes"] if v["name"] == "shm"]
            assert shared["emptyDir"]["medium"] == "Memory"
    gpu, cpu = job["rayClusterSpec"]["workerGroupSpecs"]
    assert "nvidia.com/gpu" in gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_command_of_the_job_is_one_of_ours(job):
    words = job["entrypoint"].split()
    assert words[:3] == ["python", "-m", "sdd_ray.embed"]
    given = [word for word in words[5:] if "=" in word]
    config = load_config(EmbedConfig, REPOSITORY / "configs" / "embed.yaml", given)
    assert config.resources.gpus_per_worker == 1


def closed(schema):
    """Kubernetes drops keys that a definition does not have: here they are an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def test_kubernetes_accepts_the_file():
    """With SDD_RAY_KUBERAY_CRD=ray.io_rayjobs.yaml, from ray-project/kuberay."""
    file = os.environ.get("SDD_RAY_KUBERAY_CRD")
    if not file:
        pytest.skip("SDD_RAY_KUBERAY_CRD names no definition of RayJob")
    versions = yaml.safe_load(Path(file).read_text())["spec"]["versions"]
    [schema] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    schema["properties"]["metadata"] = {"type": "object"}
    check = jsonschema.Draft202012Validator(closed(schema))
    tree = yaml.safe_load(KUBERAY.read_text())
    assert [error.message for error in check.iter_errors(tree)] == []
    tree["spec"]["rayClusterSpec"]["headGroupSpec"]["replica"] = 1
    assert "replica" in next(check.iter_errors(tree)).message


def test_charts_are_of_metrics_that_there_are():
    board = json.loads((REPOSITORY / "clusters" / "grafana.json").read_text())
    asked = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    source = (REPOSITORY / "sdd_ray" / "engine" / "metrics.py").read_text()
    ours = set(re.findall(r'(?:Counter|Gauge)\(\s*"(\w+)"', source))
    shown = {name.removesuffix("_total") for name in re.findall(r"ray_(sdd_\w+)", asked)}
    assert shown == ours
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
