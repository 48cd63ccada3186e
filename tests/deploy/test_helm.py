"""The Helm chart: Helm's own linter, its templates with the values of several clusters, and Kubernetes' schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kubernetes_validate
import pytest
from helm_python import Chart, HelmError, lint
from ruamel.yaml import YAML

import tusd_py
from tests.support.server import ROOT
from tusd_py.cli.app import COMMANDS
from tusd_py.jobs.queues import QUEUES, QueueKeys
from tusd_py.settings.load import load

CHART = ROOT / "deploy" / "helm" / "tusd-py"
VERSIONS = ("1.25", "1.37")
"""Of Kubernetes: the oldest that the chart takes, and the newest whose schemas there are."""
SHARED: dict[str, Any] = {"redis": {"url": "redis://redis:6379/0"}}
BUCKET: dict[str, Any] = {
    "redis": {"existingSecret": "redis"},
    "s3": {
        "enabled": True,
        "bucket": "uploads",
        "endpoint": "http://store",
        "existingSecret": "s3",
    },
    "secretFiles": {"TUSD_JWT_SECRET_FILE": {"secret": "jwt", "key": "secret"}},
    "settings": {"TUSD_AUTH": "jwt", "TUSD_REDIS_PREFIX": "mine:"},
    "worker": {"autoscaling": {"enabled": True, "redisAddress": "redis:6379"}},
    "ingress": {"enabled": True, "tlsSecret": "tls"},
    "networkPolicy": {
        "from": [{"podSelector": {"matchLabels": {"app": "proxy"}}}],
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    },
    "server": {"podAnnotations": {"a": "b"}, "nodeSelector": {"disk": "fast"}},
}
CLUSTERS = [pytest.param(SHARED, id="a shared volume"), pytest.param(BUCKET, id="a bucket")]
Manifest = Mapping[str, Any]
Render = Callable[[Mapping[str, Any]], list[Manifest]]


@pytest.fixture(scope="module")
def render() -> Render:
    chart = Chart.load(CHART)

    def rendered(values: Mapping[str, Any]) -> list[Manifest]:
        texts = chart.render(dict(values), name="uploads", namespace="default")
        yaml = YAML(typ="safe")
        found = [
            each
            for name, text in texts.items()
            if name.endswith(".yaml")
            for each in yaml.load_all(text)
        ]
        return [each for each in found if each]

    return rendered


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """By name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pod(deployment: Manifest) -> Any:
    return deployment["spec"]["template"]["spec"]


def environment(deployment: Manifest) -> dict[str, str]:
    """The variables whose values stand in the manifest."""
    [container] = pod(deployment)["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.parametrize("values", CLUSTERS)
def test_helm_has_nothing_to_say(values: dict[str, Any]) -> None:
    report = lint(CHART, values, strict=True)
    # Charts without an icon are well.
    assert [each for each in report["messages"] if each["severity"] > 1] == []
    assert report["errors"] == []
    assert Chart.load(CHART).metadata["appVersion"] == tusd_py.__version__


@pytest.mark.parametrize("values", CLUSTERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_all_is_what_kubernetes_takes(values: dict[str, Any], version: str, render: Render) -> None:
    manifests = render(values)
    assert {each["kind"] for each in manifests} >= {
        *("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount")
    }
    for manifest in manifests:
        # KEDA's own kind.
        if manifest["kind"] != "ScaledObject":
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", CLUSTERS)
def test_all_three_run_our_commands_with_settings_that_exist_and_without_rights(
    values: dict[str, Any], render: Render
) -> None:
    deployments = of_kind(render(values), "Deployment")
    commands = []
    for deployment in deployments.values():
        [container] = pod(deployment)["containers"]
        commands.append(container["args"][0])
        env = environment(deployment)
        env.setdefault("TUSD_REDIS_URL", "redis://from-a-secret")
        # Of a secret that is mounted.
        env.pop("TUSD_JWT_SECRET_FILE", None)
        env.pop("TUSD_AUTH", None)
        settings = load(env).settings
        assert pod(deployment)["terminationGracePeriodSeconds"] > settings.shutdown_timeout
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod(deployment)["securityContext"]["runAsUser"] == 10001
        assert pod(deployment)["automountServiceAccountToken"] is False
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod(deployment)["volumes"]}
    assert sorted(commands) == ["scheduler", "serve", "worker"]
    assert set(commands) <= set(COMMANDS)


def test_uploads_are_in_the_volume_or_in_the_bucket(render: Render) -> None:
    shared, bucket = render(SHARED), render(BUCKET)
    assert of_kind(shared, "PersistentVolumeClaim")["uploads-tusd-py"]
    assert not of_kind(bucket, "PersistentVolumeClaim")
    for deployment in of_kind(shared, "Deployment").values():
        claim = {"claimName": "uploads-tusd-py"}
        assert {"name": "data", "persistentVolumeClaim": claim} in pod(deployment)["volumes"]
    for deployment in of_kind(bucket, "Deployment").values():
        assert environment(deployment)["TUSD_S3_BUCKET"] == "uploads"
        [container] = pod(deployment)["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    theirs = render({**SHARED, "storage": {"existingClaim": "theirs"}})
    assert not of_kind(theirs, "PersistentVolumeClaim")


def test_a_server_is_drained_before_it_is_stopped_and_another_one_is_there(render: Render) -> None:
    manifests = render(SHARED)
    server = of_kind(manifests, "Deployment")["uploads-tusd-py-server"]
    assert server["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    [container] = pod(server)["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert "time.sleep(5)" in container["lifecycle"]["preStop"]["exec"]["command"][2]
    budget = of_kind(manifests, "PodDisruptionBudget")["uploads-tusd-py-server"]
    labels = server["spec"]["template"]["metadata"]["labels"]
    selector = budget["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    service = of_kind(manifests, "Service")["uploads-tusd-py"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_workers_are_scaled_by_the_queues_that_there_are(render: Render) -> None:
    manifests = render(BUCKET)
    scaled = of_kind(manifests, "ScaledObject")["uploads-tusd-py-worker"]
    worker = of_kind(manifests, "Deployment")[scaled["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in worker["spec"]
    keys = QueueKeys("mine:")
    lists = {trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]}
    assert lists == {keys.queue(queue) for queue in QUEUES}
    assert all(
        isinstance(value, str)
        for trigger in scaled["spec"]["triggers"]
        for value in trigger["metadata"].values()
    )


def test_only_uploads_and_tokens_are_reached_from_outside(render: Render) -> None:
    manifests = render(BUCKET)
    [rule] = of_kind(manifests, "Ingress")["uploads-tusd-py"]["spec"]["rules"]
    assert [each["path"] for each in rule["http"]["paths"]] == ["/files", "/auth"]
    policies = of_kind(manifests, "NetworkPolicy")
    assert "ingress" not in policies["uploads-tusd-py-jobs"]["spec"]
    [reached] = policies["uploads-tusd-py-server"]["spec"]["ingress"]
    assert len(reached["from"]) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "set redis.url or redis.existingSecret"),
        ({**SHARED, "s3": {"enabled": True}}, "set s3.bucket"),
        ({**SHARED, "worker": {"autoscaling": {"enabled": True}}}, "redisAddress"),
        ({**SHARED, "settings": {"EXPIRE_AFTER": "7d"}}, "EXPIRE_AFTER"),
        ({**SHARED, "servers": {}}, "servers"),
    ],
    ids=["no Redis", "no bucket", "no address for KEDA", "no setting", "no such value"],
)
def test_what_is_missing_or_wrong_is_said(
    values: dict[str, Any], said: str, render: Render
) -> None:
    with pytest.raises(HelmError, match=said):
        render(values)
