"""The manifests of deploy/kubernetes, rendered by kustomize: their schema, and what they promise.

No cluster is asked. Figures are compared with those of the programs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import edge.__main__
import edge.app
import inference.__main__
from edge.config import EdgeConfig, load_edge_config
from inference import server
from inference.config import ServerConfig

ROOT = Path(__file__).parents[2]
KIT = ROOT / "deploy" / "kubernetes"
RENDERED = ("edge", "inference", "network", "example", "inference-pool")
# Overlay and name of all that has pods.
WORKLOADS = (
    ("edge", "isthmus-edge"),
    ("inference", "isthmus-inference"),
    ("example", "isthmus-edge"),
    ("example", "isthmus-inference-text"),
    ("example", "isthmus-inference-embedding"),
    ("inference-pool", "isthmus-pool"),
)
# Kinds of other projects: kubernetes-validate has no schema of them.
FOREIGN = {"ScaledObject", "PodMonitor", "PrometheusRule", "InferencePool", "HTTPRoute"}
# Seconds for which a cluster's name servers remember an address.
DNS_SECONDS = 30
# Seconds for what a program does at its end beside what its settings bound.
CLOSING_SECONDS = 5
# What a policy lets Prometheus reach.
METRICS_PORT = 9464
FROM_PROMETHEUS = {
    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    "ports": [{"port": METRICS_PORT, "protocol": "TCP"}],
}
Workload = tuple[str, dict[str, Any]]
UNITS = {"Mi": 2**20, "Gi": 2**30}


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).parent / "kubectl"
    command = [kubectl, "kustomize", KIT / name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


def objects(name: str, *kinds: str) -> list[dict[str, Any]]:
    return [each for each in rendered(name) if each["kind"] in kinds]


def pod(overlay: str, name: str) -> dict[str, Any]:
    """The template of a workload's pods."""
    [found] = [
        each["spec"]["template"]
        for each in objects(overlay, "Deployment", "StatefulSet")
        if each["metadata"]["name"] == name
    ]
    return found


@pytest.fixture(params=WORKLOADS, ids="/".join)
def workload(request: pytest.FixtureRequest) -> Workload:
    """(overlay, pod template)."""
    return request.param[0], pod(*request.param)


def containers(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = template["spec"]
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}


def file(overlay: str, template: dict[str, Any], name: str, folder: Path) -> Path:
    """A file of the ConfigMap that a pod mounts."""
    [volume] = [each for each in template["spec"]["volumes"] if each["name"] == "config"]
    [found] = [
        each
        for each in objects(overlay, "ConfigMap")
        if each["metadata"]["name"] == volume["configMap"]["name"]
    ]
    path = folder / name
    path.write_text(found["data"][name])
    return path


def edge_config(overlay: str, template: dict[str, Any], folder: Path) -> EdgeConfig | None:
    container = containers(template).get("edge")
    if container is None:
        return None
    arguments = vars(edge.__main__._parser().parse_args(container["args"]))
    path = arguments.pop("config")
    return load_edge_config(file(overlay, template, path.name, folder), arguments)


def server_config(overlay: str, template: dict[str, Any], folder: Path) -> ServerConfig | None:
    container = containers(template).get("inference")
    if container is None:
        return None
    arguments = inference.__main__._parser().parse_args(container["args"])
    arguments.config = file(overlay, template, arguments.config.name, folder)
    program = inference.__main__
    return program._config(arguments, program._models(arguments))


def ports_of(container: dict[str, Any]) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in container["ports"]}


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.mark.parametrize("name", RENDERED)
def test_every_manifest_has_the_schema_of_its_kind(name: str) -> None:
    for each in rendered(name):
        if each["kind"] not in FOREIGN:
            version = kubernetes_validate.latest_version()
            kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_check_notices_a_misspelt_field() -> None:
    [deployment] = objects("edge", "Deployment")
    text = yaml.safe_dump(deployment).replace("readinessProbe", "readinesProbe")
    version = kubernetes_validate.latest_version()
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(yaml.safe_load(text), version, strict=True)


def test_pods_run_as_the_user_of_the_images_and_may_write_only_to_volumes(
    workload: Workload,
) -> None:
    _, template = workload
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for name, container in containers(template).items():
        text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
        user = spec["securityContext"]["runAsUser"]
        assert f"useradd --uid {user} " in text
        assert f"\nUSER {user}\n" in text
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {each["name"]: each for each in spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            assert mount.get("readOnly", False) == ("emptyDir" not in volume), mount
            assert "subPath" not in mount, "it would not follow a change"


def test_programs_take_their_settings_and_find_their_files(
    workload: Workload, tmp_path: Path
) -> None:
    overlay, template = workload
    for name, config in (
        ("edge", edge_config(overlay, template, tmp_path)),
        ("inference", server_config(overlay, template, tmp_path)),
    ):
        if config is None:
            continue
        mounts = containers(template)[name]["volumeMounts"]
        folders = {Path(each["mountPath"]): each.get("readOnly", False) for each in mounts}
        assert config.keys_file
        assert folders[config.keys_file.parent] is True
        if isinstance(config, EdgeConfig):
            assert config.files_dir
            # The edge makes it: the volume's own folder is open to the group.
            assert folders[config.files_dir.parent] is False
        else:
            for model in config.models:
                assert folders[Path(model.source).parent] is True


def test_grace_covers_what_the_programs_take_to_stop(workload: Workload, tmp_path: Path) -> None:
    overlay, template = workload
    needed = float(CLOSING_SECONDS)
    if config := edge_config(overlay, template, tmp_path):
        needed += config.settle_seconds + config.drain_seconds + edge.app._ERROR_SECONDS
    if service := server_config(overlay, template, tmp_path):
        needed += server.SETTLE_SECONDS + server.GOODBYE_SECONDS + server.CLOSE_SECONDS
        if config is None:
            needed += service.drain_seconds
        else:
            # A sidecar: it stops after the edge, whose requests have ended.
            [sidecar] = template["spec"]["initContainers"]
            assert sidecar["restartPolicy"] == "Always"
    assert template["spec"]["terminationGracePeriodSeconds"] >= needed


@pytest.mark.parametrize("edges", [each for each in WORKLOADS if "inference" not in each[1]])
def test_load_balancers_notice_a_stop_while_the_edge_still_takes_requests(
    edges: tuple[str, str], tmp_path: Path
) -> None:
    overlay, template = edges[0], pod(*edges)
    config = edge_config(overlay, template, tmp_path)
    assert config
    probe = containers(template)["edge"]["readinessProbe"]
    assert probe["httpGet"]["path"] == "/ready"
    # A probe, and five seconds for the change to reach every proxy.
    noticed = (probe["periodSeconds"] + probe["timeoutSeconds"]) * probe["failureThreshold"] + 5
    assert config.settle_seconds >= noticed


def test_memory_limits_cover_what_the_budgets_may_grow_to(
    workload: Workload, tmp_path: Path
) -> None:
    overlay, template = workload
    # docs/architecture.md: four and eight times.
    for name, factor, config in (
        ("edge", 4, edge_config(overlay, template, tmp_path)),
        ("inference", 8, server_config(overlay, template, tmp_path)),
    ):
        if config is not None:
            assert config.memory_budget_bytes
            limit = size(containers(template)[name]["resources"]["limits"]["memory"])
            assert limit > factor * config.memory_budget_bytes


def test_probes_and_ports_belong_together(workload: Workload) -> None:
    _, template = workload
    for name, container in containers(template).items():
        ports = ports_of(container)
        ports.pop("metrics", None)
        assert ports == ({"http": 8000} if name == "edge" else {"grpc": 50051})
        for probe in ("readinessProbe", "livenessProbe"):
            [port] = {
                action["port"]
                for kind, action in container[probe].items()
                if kind in ("httpGet", "tcpSocket", "grpc")
            }
            assert port in (*ports, *ports.values())
    if inference_container := containers(template).get("inference"):
        # NOT_SERVING also means loading and wedged, from which a service may recover.
        assert "grpc" not in inference_container["livenessProbe"]


def test_a_replica_is_replaced_only_when_every_edge_knows_the_one_before() -> None:
    resolve_seconds = EdgeConfig().resolve_seconds
    for each in objects("example", "StatefulSet"):
        assert each["spec"]["minReadySeconds"] >= resolve_seconds + DNS_SECONDS


def test_edges_know_a_headless_service_for_each_model(tmp_path: Path) -> None:
    [deployment] = objects("example", "Deployment")
    config = edge_config("example", deployment["spec"]["template"], tmp_path)
    assert config
    services = {
        each["metadata"]["name"]: each["spec"]
        for each in objects("example", "Service")
        if each["spec"].get("clusterIP") == "None"
    }
    assert set(config.upstreams) == {f"{name}:50051" for name in services}
    sets = objects("example", "StatefulSet")
    assert {each["spec"]["serviceName"] for each in sets} == set(services)
    selectors = [tuple(sorted(each["selector"].items())) for each in services.values()]
    assert len(set(selectors)) == len(selectors), "a model's replicas would answer for another's"
    for each in sets:
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert services[each["spec"]["serviceName"]]["selector"].items() <= labels.items()


def test_only_edges_reach_the_services_which_reach_nobody() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in rendered("network")}
    service, front = policies["isthmus-inference"], policies["isthmus-edge"]
    assert service["ingress"] == [
        {
            "from": [{"podSelector": front["podSelector"]}],
            "ports": [{"port": 50051, "protocol": "TCP"}],
        },
        FROM_PROMETHEUS,
    ]
    assert service["egress"] == []
    assert front["egress"][0]["to"] == [{"podSelector": service["podSelector"]}]
    assert all(each["policyTypes"] == ["Ingress", "Egress"] for each in policies.values())
    for each in objects("example", "Deployment", "StatefulSet"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        matching = [
            name
            for name, policy in policies.items()
            if policy["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        assert matching == [re.sub(r"-(text|embedding)$", "", each["metadata"]["name"])]


def test_every_program_has_metrics_that_prometheus_reaches(
    workload: Workload, tmp_path: Path
) -> None:
    overlay, template = workload
    monitors = objects("example", "PodMonitor")
    labels = template["metadata"]["labels"]
    scraped = {
        endpoint["port"]
        for each in monitors
        for endpoint in each["spec"]["podMetricsEndpoints"]
        if selects(each["spec"]["selector"], labels)
    }
    for name, config in (
        ("edge", edge_config(overlay, template, tmp_path)),
        ("inference", server_config(overlay, template, tmp_path)),
    ):
        if config is None:
            continue
        ports = ports_of(containers(template)[name])
        if config.metrics_listen is None:
            # An endpoint picker has no key, and asks on the port of the API.
            assert isinstance(config, EdgeConfig)
            assert config.metrics_open
            assert "http" in scraped & set(ports)
        else:
            assert config.metrics_listen == f"0.0.0.0:{METRICS_PORT}"
            assert ports["metrics"] == METRICS_PORT
            assert "metrics" in scraped


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("name", ["network", "inference-pool"])
def test_only_prometheus_reaches_the_metrics(name: str) -> None:
    for each in objects(name, "NetworkPolicy"):
        rules = [
            rule
            for rule in each["spec"]["ingress"]
            if any(port["port"] == METRICS_PORT for port in rule["ports"])
        ]
        assert rules == [FROM_PROMETHEUS]


def test_jobs_are_those_that_alerts_and_dashboard_name() -> None:
    for each in objects("example", "PodMonitor"):
        for endpoint in each["spec"]["podMetricsEndpoints"]:
            assert endpoint["path"] == "/metrics"
            assert endpoint["relabelings"] == [
                {
                    "sourceLabels": ["__meta_kubernetes_pod_container_name"],
                    "targetLabel": "job",
                    "replacement": "isthmus-$1",
                }
            ]
    names = {name for each in WORKLOADS for name in containers(pod(*each))}
    assert names == {"edge", "inference"}


@pytest.mark.parametrize("name", ["example", "inference-pool"])
def test_every_workload_has_a_disruption_budget(name: str) -> None:
    budgets = [each["spec"] for each in objects(name, "PodDisruptionBudget")]
    for each in objects(name, "Deployment", "StatefulSet"):
        matching = [b for b in budgets if b["selector"] == each["spec"]["selector"]]
        assert [budget["maxUnavailable"] for budget in matching] == [1]


def test_a_scaler_owns_the_number_of_what_it_scales() -> None:
    workloads = {
        (each["kind"], each["metadata"]["name"]): each["spec"]
        for each in objects("example", "Deployment", "StatefulSet")
    }
    scalers = objects("example", "HorizontalPodAutoscaler", "ScaledObject")
    assert len(scalers) == 2
    for each in scalers:
        target = each["spec"]["scaleTargetRef"]
        assert "replicas" not in workloads[target["kind"], target["name"]]


def test_images_are_those_of_this_version(workload: Workload) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, container in containers(workload[1]).items():
        assert container["image"].rpartition("/")[2] == f"isthmus-{name}:{version}"


def test_the_workloads_above_are_all() -> None:
    assert set(WORKLOADS) == {
        (overlay, each["metadata"]["name"])
        for overlay in RENDERED
        for each in objects(overlay, "Deployment", "StatefulSet")
    }
