"""What is shipped beside the code: the chart, the compose file, the systemd unit, the Dockerfile, each by its own tool.

Helm renders the chart (as a library), Kubernetes' own schemas judge what comes out, hadolint and systemd-analyze the
others. That the files mean what the code does is asserted here: settings exist, routes exist, bounds are long enough.
"""

import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tidegate.app import create_app
from tidegate.routing.configuration import CatalogueSource, parse_catalogue
from tidegate.server.bounds import server_bound_s
from tidegate.settings import Settings, variable_names

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "tidegate"
KUBERNETES = "1.37.0"
VALUES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "with everything": {
        "image": {"tag": "1.2.3"},
        "imagePullSecrets": [{"name": "registry"}],
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "className": "nginx", "host": "gateway.example.com", "tlsSecretName": "tls"},
        "extraEnv": [{"name": "OPENAI_API_KEY", "valueFrom": {"secretKeyRef": {"name": "openai", "key": "key"}}}],
        "networkPolicy": {
            "apiFrom": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}],
            "managementFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        },
        "extraVolumes": [{"name": "authority", "configMap": {"name": "authority"}}],
        "extraVolumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
        "migration": {"databaseUrlKey": "owner-url"},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "service": {"annotations": {"c": "d"}, "port": 8080},
        "tls": {"secretName": "certificate"},
        "serviceAccount": {"annotations": {"e": "f"}},
    },
    "with nothing that can be left out": {
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "migration": {"enabled": False},
        "serviceAccount": {"create": False},
        "topologySpread": False,
    },
}
Manifest = dict[str, Any]


def _rendered(values: dict[str, Any]) -> list[Manifest]:
    helm = pytest.importorskip("helm_python", reason="there is no Helm library for this machine")
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="release", namespace="gateways")
    return [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def _one(manifests: list[Manifest], kind: str) -> Manifest:
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1
    return found[0]


def _container(manifest: Manifest) -> dict[str, Any]:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_helm_finds_no_fault_in_the_chart() -> None:
    helm = pytest.importorskip("helm_python", reason="there is no Helm library for this machine")
    report = helm.lint(str(CHART), strict=True)
    worst = [message for message in report["messages"] if message["severity"] > 1]
    assert (report["total_charts_linted"], report["errors"], worst) == (1, [], [])


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_what_the_chart_renders_is_what_kubernetes_takes(values: dict[str, Any]) -> None:
    manifests = _rendered(values)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert {"Deployment", "ConfigMap", "Service"} <= set(kinds)
    if not values:
        always = ["ConfigMap", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget"]
        assert kinds == [*always, "Service", "Service", "ServiceAccount"]


def test_a_manifest_that_is_wrong_is_refused() -> None:
    deployment = _one(_rendered({}), "Deployment")
    _container(deployment)["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_the_charts_environment_is_of_settings_that_exist() -> None:
    manifests = _rendered(VALUES["with everything"])
    for kind in ("Deployment", "Job"):
        names = {entry["name"] for entry in _container(_one(manifests, kind))["env"]} - {"OPENAI_API_KEY"}
        assert names <= _variables()
    assert "TIDEGATE_DATABASE__MAX_REPLICAS" in _variables()


def test_the_chart_counts_every_replica_that_may_share_the_database() -> None:
    for values, most in (({}, "2"), (VALUES["with everything"], "6")):
        environment = _container(_one(_rendered(values), "Deployment"))["env"]
        (told,) = [entry["value"] for entry in environment if entry["name"] == "TIDEGATE_DATABASE__MAX_REPLICAS"]
        assert told == most


def test_no_secret_stands_in_the_charts_environment() -> None:
    for manifest in (_one(_rendered({}), kind) for kind in ("Deployment", "Job")):
        for entry in _container(manifest)["env"]:
            if re.search(r"URL|KEYS|PEPPERS", entry["name"]):
                assert entry["value"].startswith("file:/run/secrets/tidegate/")


def test_a_pod_has_time_to_drain_and_its_probes_are_routes() -> None:
    values = {"drainSeconds": 100, "preStopSeconds": 7}
    pod = _one(_rendered(values), "Deployment")["spec"]["template"]["spec"]
    settings = Settings(server={"drain_s": 100, "linger_s": 0})
    assert pod["terminationGracePeriodSeconds"] >= 7 + server_bound_s(settings)
    (container,) = pod["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert {"name": "TIDEGATE_SERVER__DRAIN_S", "value": "100"} in container["env"]
    probed = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert probed <= set(create_app(Settings()).openapi()["paths"])
    # Liveness must not touch a dependency: PostgreSQL's loss would restart every pod.
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"


@pytest.mark.parametrize(("secret", "scheme"), [("", "HTTP"), ("certificate", "HTTPS")])
def test_probes_ask_as_the_ports_speak(secret: str, scheme: str) -> None:
    container = _container(_one(_rendered({"tls": {"secretName": secret}}), "Deployment"))
    probes = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")]
    assert [probe["scheme"] for probe in probes] == [scheme] * 3
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for name, file in (("CERTIFICATE", "tls.crt"), ("KEY", "tls.key")):
        assert env.get(f"TIDEGATE_SERVER__TLS_{name}") == (f"/run/secrets/tls/{file}" if secret else None)
    assert ("/run/secrets/tls" in mounted) is bool(secret)


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_a_pod_is_no_root_and_writes_nowhere_but_its_volumes(kind: str) -> None:
    manifest = _one(_rendered({}), kind)
    pod, container = manifest["spec"]["template"]["spec"], _container(manifest)
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_charts_catalogue_and_that_of_compose_can_be_read() -> None:
    text = _one(_rendered({}), "ConfigMap")["data"]["tidegate.toml"]
    assert [model.name for model in parse_catalogue(Settings(), CatalogueSource("values", text)).models] == ["echo"]
    text = (DEPLOY / "compose" / "tidegate.toml").read_text("utf-8").replace("env:OPENAI_API_KEY", "a-key")
    assert parse_catalogue(Settings(), CatalogueSource("compose", text)).models


def test_management_is_for_nobody_that_was_not_named() -> None:
    rules = _one(_rendered({}), "NetworkPolicy")["spec"]["ingress"]
    (management,) = [rule for rule in rules if rule["ports"][0]["port"] == "management"]
    assert management["from"] == [
        {"podSelector": {"matchLabels": _one(_rendered({}), "Deployment")["spec"]["selector"]["matchLabels"]}}
    ]


def test_the_compose_file_has_its_form_and_names_what_exists() -> None:
    written = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
    schema = json.loads((ROOT / "tests" / "support" / "compose.schema.json").read_text("utf-8"))
    jsonschema.validate(written, schema, cls=jsonschema.Draft202012Validator)
    services = written["services"]
    for name, service in services.items():
        needs = service.get("depends_on", [])
        assert set(needs) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            known = source in written["volumes"] or (DEPLOY / "compose" / source).exists()
            assert known, f"{name} mounts {source}, which is not there"
    assert {one for one in services["gateway"]["environment"] if one.startswith("TIDEGATE_")} <= _variables()
    asked = set(re.findall(r"\$\{(\w+)[:}]", (DEPLOY / "compose" / "compose.yaml").read_text("utf-8")))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / "compose" / "example.env").read_text("utf-8"), re.MULTILINE))
    assert asked == offered


def test_compose_and_systemd_wait_as_long_as_a_server_may_take() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
    bound_s = server_bound_s(Settings())
    assert int(compose["services"]["gateway"]["stop_grace_period"].removesuffix("s")) > bound_s
    assert int(_unit()["Service"]["TimeoutStopSec"]) > bound_s


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("this machine has no systemd-analyze")
    text = (DEPLOY / "systemd" / "tidegate.service").read_text("utf-8")
    unit = tmp_path / "tidegate.service"
    unit.write_text(text.replace("/opt/tidegate/bin/tidegate", sys.executable))
    found = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in found.stderr.splitlines() if "tidegate" in line] == []
    unit.write_text(unit.read_text("utf-8").replace("KillMode=mixed", "KillMode=gently"))
    found = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    assert "gently" in found.stderr


def test_the_unit_calls_commands_that_exist() -> None:
    text = (DEPLOY / "systemd" / "tidegate.service").read_text("utf-8")
    called = re.findall(r"^Exec\w+=/opt/tidegate/bin/tidegate (\w+)$", text, re.MULTILINE)
    assert called == ["migrate", "serve", "reload"]
    for name in called:
        command = [sys.executable, "-m", "tidegate.cli.main", name, "--help"]
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0, name


def test_hadolint_finds_no_fault_in_the_dockerfile(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    good = DEPLOY / "Dockerfile"
    subprocess.run([program, "--no-color", str(good)], check=True, timeout=60)
    bad = tmp_path / "Dockerfile"
    bad.write_text(good.read_text("utf-8") + "\nRUN cd /src && apt-get install curl\n")
    assert subprocess.run([program, str(bad)], capture_output=True, check=False, timeout=60).returncode == 1


def _unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as the parser's own page says
    unit.read(DEPLOY / "systemd" / "tidegate.service", "utf-8")
    return unit


def _variables() -> set[str]:
    return {*variable_names()}


def test_the_wheel_that_is_made_from_the_sdist_holds_the_whole_package(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    command = [
        str(uv),
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(tmp_path),
    ]
    subprocess.run([*command, str(ROOT)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tidegate/")}
    source = ROOT / "src"
    assert names == {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    with tarfile.open(sdist) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {"src", "tests", "docs", "deploy", "requirements", "Makefile", "LICENSE"} <= tops
