"""What people deploy a fleet with: linted, of one mind, and only with settings and names that there are."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

from tasks.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
REDIS = yaml.safe_load((FOLDER / "compose.redis.yaml").read_text())
KUBERNETES = sorted((FOLDER / "kubernetes").rglob("*.yaml"))
SCALE = (ROOT / "docs" / "scale.md").read_text()
HOME = "/var/lib/tokensweep"
OF_COMPOSE = {"TOKENSWEEP_IMAGE", "TOKENSWEEP_PORT", "TOKENSWEEP_UI_API_URL", "TOKENSWEEP_WORKERS"}
"""What only the compose file reads."""
OF_PREFECT_REDIS = "PREFECT_REDIS_"
"""Settings of a package that is not locked here."""
DEFAULTS_OF_PREFECTS_OWN = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"}
"""Read by `prefect flow-run execute`, without being a setting."""


def objects() -> Iterator[dict[str, Any]]:
    """Of Kubernetes, without the kustomizations and their patches."""
    for path in KUBERNETES:
        if path.name != "kustomization.yaml" and path.parts[-2:] != ("redis", "server.yaml"):
            yield from yaml.safe_load_all(path.read_text())


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in objects() if found["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Specification of each pod by the name of what makes it."""
    found = {
        name: made["spec"]["template"]["spec"]
        for kind in ("Deployment", "StatefulSet")
        for name, made in named(kind).items()
    }
    return found | {n: cron["spec"]["jobTemplate"]["spec"]["template"]["spec"] for n, cron in named("CronJob").items()}


def ours() -> dict[str, dict[str, Any]]:
    """Pods of our image, and the container in each."""
    return {name: pod for name, pod in pods().items() if pod["containers"][0]["image"] == "tokensweep"}


def everything() -> str:
    files = [
        path for path in FOLDER.rglob("*") if path.suffix in {".yaml", ".json", ".sh"} or path.name == "Dockerfile"
    ]
    return "\n".join(path.read_text() for path in files)


def test_nothing_secret_and_no_trace_of_this_checkout_can_get_into_an_image() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "only what is listed is sent at all"
    for needless in ("**/*.env", "**/.*", "**/__pycache__"):
        assert lines.index(needless) > max(lines.index(line) for line in lines if line.startswith("!"))
    copied = {word for line in DOCKERFILE.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]}
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert "." not in copied
    for path in copied - {"--from=build", "/opt/tokensweep"}:
        assert path.split("/")[0] in sent and (ROOT / path).exists(), path
    assert "vendors.env" in (ROOT / ".gitignore").read_text() and ".env" in (ROOT / ".gitignore").read_text()


def test_the_image_is_nobodys_root_and_keeps_everything_in_its_volume() -> None:
    assert re.findall(r"(?m)^USER (.+)$", DOCKERFILE) == ["10001"]
    assert f"TOKENSWEEP_HOME={HOME}" in DOCKERFILE and f"TOKENSWEEP_CACHE={HOME}/cache" in DOCKERFILE
    assert re.search(rf"--owner=tokensweep {HOME} /var/lib/prefect", DOCKERFILE), "a new volume has its folder's owner"


def test_every_setting_there_is() -> None:
    from prefect.settings.models.root import Settings as PrefectSettings

    known: set[str] = set()

    def collect(model: type[Any], prefix: str) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                collect(inner, f"{prefix}_{name}")
                continue
            known.add(f"{prefix}_{name}".upper())
            choices = getattr(field.validation_alias, "choices", ())
            known.update(choice.upper() for choice in choices if isinstance(choice, str))

    collect(PrefectSettings, "PREFECT")
    known |= {f"TOKENSWEEP_{name.upper()}" for name in Settings.model_fields} | {"TOKENSWEEP_CHECKOUT"}
    assert "PREFECT_API_URL" in known and "PREFECT_SERVER_UI_API_URL" in known
    named_here = set(re.findall(r"\b(?:PREFECT|TOKENSWEEP)_[A-Z][A-Z_]*[A-Z]\b", everything()))
    unknown = {
        name
        for name in named_here - known - OF_COMPOSE - DEFAULTS_OF_PREFECTS_OWN
        if not name.startswith(OF_PREFECT_REDIS)
    }
    assert unknown == set()


def test_the_setup_is_a_program_and_names_what_there_is() -> None:
    path = FOLDER / "setup.sh"
    assert path.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["sh", "-n", path]).returncode == 0
    for name in re.findall(r"deployments/[\w/.-]+\.json", path.read_text()):
        assert (ROOT / name).is_file()
    assert "unset TOKENSWEEP_CHECKOUT" in path.read_text(), "else workers would look in a folder of whoever deploys"


def test_the_documentation_names_files_that_there_are() -> None:
    for name in re.findall(r"deployments/[\w/.-]*[\w]", SCALE):
        assert (ROOT / name).exists() or name.endswith(".env"), name


# -- compose --


def test_what_must_survive_is_in_volumes_that_there_are() -> None:
    for compose in (COMPOSE, REDIS):
        for name, service in compose["services"].items():
            for volume in service.get("volumes", []):
                source = volume.partition(":")[0]
                assert source in compose["volumes"] or (source.startswith("./") and (FOLDER / source).is_file()), name
    mounts = {name: service.get("volumes", []) for name, service in COMPOSE["services"].items()}
    assert all(f"home:{HOME}" in mounts[name] for name in ("worker", "reaper", "cli"))
    assert f"server:{COMPOSE['services']['server']['environment']['PREFECT_HOME']}" in mounts["server"]


def test_the_ledger_is_a_database_of_its_own_in_compose_and_cluster() -> None:
    script = (FOLDER / "ledger.sql").read_text().strip()
    assert any(volume.startswith("./ledger.sql:") for volume in COMPOSE["services"]["postgres"]["volumes"])
    assert named("ConfigMap")["postgres-init"]["data"]["ledger.sql"].strip() == script
    assert COMPOSE["services"]["worker"]["environment"]["TOKENSWEEP_LEDGER_URL"].endswith("@postgres/ledger")


def test_whoever_may_hold_servers_has_time_to_delete_them() -> None:
    for name in ("worker", "reaper", "cli"):
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) >= 60
    assert COMPOSE["services"]["worker"]["command"][:2] == ["tokensweep", "worker"], "Prefect's own kills its flow runs"


def test_all_of_the_fleet_share_ledger_and_lake() -> None:
    shared = [
        {
            n: v
            for n, v in COMPOSE["services"][name]["environment"].items()
            if n in ("TOKENSWEEP_LEDGER_URL", "TOKENSWEEP_LAKE")
        }
        for name in ("worker", "reaper", "cli")
    ]
    assert len(shared[0]) == 2 and shared == shared[:1] * 3


def test_the_browser_is_given_an_address_that_it_can_reach() -> None:
    server = COMPOSE["services"]["server"]
    assert "PREFECT_API_URL" not in server["environment"], "Prefect's UI would call what only containers can resolve"
    assert server["environment"]["PREFECT_SERVER_UI_API_URL"].endswith(":-http://127.0.0.1:4200/api}")
    assert server["ports"] == ["127.0.0.1:${TOKENSWEEP_PORT:-4200}:4200"], "and nobody else's browser"


def test_flow_runs_are_not_kept_for_longer_than_events() -> None:
    """Prefect's own period for flow runs is 90 days, whatever that of events is."""
    servers = [COMPOSE["services"]["server"]["environment"], REDIS["services"]["services"]["environment"]]
    for pod in (ours()["prefect-server"], ours()["prefect-services"]):
        servers.append({e["name"]: e.get("value") for e in pod["containers"][0]["env"]})
    for environment in servers:
        assert environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events,flow_runs"
        kept = ServerServicesDBVacuumSettings(
            retention_period=environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"]
        ).retention_period
        assert kept == timedelta(days=7) and environment["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] == "7d"


# -- Kubernetes --


def test_every_reference_leads_somewhere() -> None:
    settings = {
        generated["name"]
        for path in KUBERNETES
        if path.name == "kustomization.yaml"
        for generated in yaml.safe_load(path.read_text()).get("configMapGenerator", [])
    }
    maps = settings | set(named("ConfigMap"))
    for name, pod in pods().items():
        for container in pod["containers"]:
            sources = container.get("envFrom", [])
            for source in sources:
                assert source.get("configMapRef", {}).get("name", "tokensweep") in maps, name
            secrets = [source["secretRef"]["name"] for source in sources if "secretRef" in source]
            secrets += [e["valueFrom"]["secretKeyRef"]["name"] for e in container.get("env", []) if "valueFrom" in e]
            for secret in secrets:
                assert f"secret generic {secret} " in SCALE, f"nobody says how to make {secret} of {name}"
        for volume in pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in named("PersistentVolumeClaim"), name
            assert "configMap" not in volume or volume["configMap"]["name"] in maps, name
    for kustomization in (path for path in KUBERNETES if path.name == "kustomization.yaml"):
        for resource in yaml.safe_load(kustomization.read_text()).get("resources", []):
            assert (kustomization.parent / resource).exists()


def test_services_lead_to_pods() -> None:
    labels = {
        frozenset(made["spec"]["template"]["metadata"]["labels"].items())
        for kind in ("Deployment", "StatefulSet")
        for made in named(kind).values()
    }
    for name, service in named("Service").items():
        assert any(set(service["spec"]["selector"].items()) <= of_pod for of_pod in labels), name
    for kind in ("Deployment", "StatefulSet"):
        for name, made in named(kind).items():
            assert made["spec"]["selector"]["matchLabels"] == made["spec"]["template"]["metadata"]["labels"], name
    hosts = set(re.findall(r"http://([\w-]+):4200/api", everything())) - {"127.0.0.1", "server"}
    assert hosts <= set(named("Service"))


def test_our_pods_are_nobodys_root_and_may_write_their_volumes() -> None:
    """A claim belongs to root until fsGroup changes that."""
    assert set(ours()) == {"prefect-server", "prefect-services", "worker", "reaper"}
    for name, pod in ours().items():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["fsGroup"] == 10001, name
        assert pod["enableServiceLinks"] is False, "variables of the service would look like settings of Prefect"


def test_worker_and_reaper_share_lake_ledger_and_spools() -> None:
    for name in ("worker", "reaper"):
        (container,) = ours()[name]["containers"]
        assert {"configMapRef": {"name": "tokensweep"}} in container["envFrom"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [HOME]
        ledger = next(e for e in container["env"] if e["name"] == "TOKENSWEEP_LEDGER_URL")
        assert ledger["valueFrom"]["secretKeyRef"] == {"name": "database", "key": "ledger"}
    assert ours()["worker"]["terminationGracePeriodSeconds"] >= 60
    assert ours()["worker"]["containers"][0]["command"][:2] == ["tokensweep", "worker"]


def test_kustomize_takes_each_folder(tmp_path: Path) -> None:
    """Its patches apply, and every image of ours gets the name that is set in one place."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here: https://kubernetes.io/docs/tasks/tools")
    for folder in ("fleet", "postgres", "redis"):
        done = subprocess.run(
            [kubectl, "kustomize", FOLDER / "kubernetes" / folder],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        made = [found for found in yaml.safe_load_all(done.stdout) if found]
        assert {found["metadata"].get("namespace", "tokensweep") for found in made} == {"tokensweep"}
        assert not re.search(r"image: tokensweep\n", done.stdout)
        if folder == "redis":
            (server,) = (f for f in made if f["kind"] == "Deployment" and f["metadata"]["name"] == "prefect-server")
            env = {e["name"]: e.get("value") for e in server["spec"]["template"]["spec"]["containers"][0]["env"]}
            assert env["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == "prefect_redis.lease_storage"
            assert server["spec"]["replicas"] > 1 and not server["spec"]["template"]["spec"].get("volumes")
            assert not any(
                f["kind"] == "PersistentVolumeClaim" and f["metadata"]["name"] == "prefect-server" for f in made
            )
