"""Checks what is published beside the code: docker-compose.yml, the Dockerfile and the hosted workflows. Takes the path of the compose
specification's JSON schema. Runs no container."""

import json
import pathlib
import re
import sys

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPOSE = "docker-compose.yml"
BESIDE = "deploy/compose/compose.yaml"
DIGEST = re.compile(r"^[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$")
ACTION = re.compile(r"^\s*(?:- )?uses: (\S+)(?: # (\S+))?", re.M)
COMMIT = re.compile(r"^[\w./-]+@[0-9a-f]{40}$")
SECRET_WORD = re.compile(r"PASSWORD|TOKEN|SECRET|_URL$")
# The image that docker-compose.yml builds itself.
OWN_IMAGE = "outbox-relay"


def compose(parsed, schema):
    for error in jsonschema.Draft202012Validator(schema).iter_errors(parsed):
        yield f"{COMPOSE}: {error.json_path}: {error.message}"
    services = parsed["services"]
    for name, service in services.items():
        if service["image"] != OWN_IMAGE and not DIGEST.match(service["image"]):
            yield f"{COMPOSE}: the image of {name} is not pinned by its digest"
        yield from waits(name, service, services)
        yield from secrets(name, service, parsed)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./") and not (ROOT / source).exists():
                yield f"{COMPOSE}: {name} mounts {source}, which is not there"
            elif not source.startswith("./") and source not in parsed["volumes"]:
                yield f"{COMPOSE}: {name} has a volume {source}, which is not declared"


def beside(schema):
    """deploy/compose, for servers that exist, is of the same specification. A test runs what it says: tests/main/containers.rs."""
    parsed = yaml.safe_load((ROOT / BESIDE).read_text())
    for error in jsonschema.Draft202012Validator(schema).iter_errors(parsed):
        yield f"{BESIDE}: {error.json_path}: {error.message}"
    for name, service in parsed["services"].items():
        for variable in service["environment"]:
            if SECRET_WORD.search(variable) and not variable.endswith("_FILE"):
                yield f"{BESIDE}: {name} has the secret {variable} in its environment; use {variable}_FILE"


def waits(name, service, services):
    for other, how in service.get("depends_on", {}).items():
        healthy = how["condition"] == "service_healthy"
        if other not in services or (healthy and "healthcheck" not in services[other]):
            yield f"{COMPOSE}: {name} waits for {other}, which cannot tell"


def secrets(name, service, parsed):
    """Secrets are files: no password in an environment, each file there, and each secret read by the service that has it."""
    own = set(service.get("secrets", []))
    for variable, value in service.get("environment", {}).items():
        if SECRET_WORD.search(variable) and not variable.endswith("_FILE"):
            yield f"{COMPOSE}: {name} has the secret {variable} in its environment; use {variable}_FILE"
        path = pathlib.PurePath(str(value))
        if path.parent == pathlib.PurePath("/run/secrets") and path.name not in own:
            yield f"{COMPOSE}: {name} reads {value}, which is not among its secrets"
    for secret in own:
        file = parsed["secrets"].get(secret, {}).get("file", "")
        if not file or not (ROOT / file).is_file():
            yield f"{COMPOSE}: the secret {secret} of {name} has no file"


def relays(parsed):
    """The relay runs without rights, by the commands of the README, and with settings that exist."""
    known = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))
    readme = (ROOT / "README.md").read_text()
    for name, service in parsed["services"].items():
        if service["image"] != OWN_IMAGE:
            continue
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{COMPOSE}: {name} has more rights than it needs"
        command = " ".join(["outbox-relay", *service["command"]])
        if not re.search(rf"(?m)^(?:DATABASE_URL=\S+ )?{re.escape(command)}$", readme):
            yield f"{COMPOSE}: the README has no command {command}"
        for setting in service.get("environment", {}):
            if setting.removesuffix("_FILE") not in known:
                yield f"{COMPOSE}: {setting} is no setting of .env.example"


def monitoring(parsed):
    """Prometheus has the alert rules and scrapes the service `relay`; Grafana has the dashboard, and a data source for it."""
    prometheus = yaml.safe_load((ROOT / "deploy/tryout/prometheus.yml").read_text())
    job = prometheus["scrape_configs"][0]
    where = job["dns_sd_configs"][0]
    address = parsed["services"]["relay"]["environment"]["RELAY_ADMIN_ADDRESS"]
    if where["names"] != ["relay"] or not address.endswith(f":{where['port']}"):
        yield "deploy/tryout/prometheus.yml does not scrape the relays' admin address"
    mounted = {volume.split(":")[1]: volume.split(":")[0] for name in ("prometheus", "grafana") for volume in parsed["services"][name]["volumes"]}
    if mounted.get(f"/etc/prometheus/{prometheus['rule_files'][0]}") != "./deploy/prometheus/alerts.yml":
        yield f"{COMPOSE}: Prometheus does not get the alert rules"
    dashboards = yaml.safe_load((ROOT / "deploy/tryout/grafana-dashboards.yml").read_text())
    if mounted.get(dashboards["providers"][0]["options"]["path"]) != "./deploy/grafana":
        yield f"{COMPOSE}: Grafana does not get the dashboard"
    sources = yaml.safe_load((ROOT / "deploy/tryout/grafana-datasources.yml").read_text())["datasources"]
    if sources[0]["url"] != "http://prometheus:9090" or not sources[0]["isDefault"]:
        yield "deploy/tryout/grafana-datasources.yml does not name the Prometheus of the same profile"
    for name in ("prometheus", "grafana"):
        if parsed["services"][name].get("profiles") != ["monitoring"]:
            yield f"{COMPOSE}: {name} is not in the profile monitoring alone"


def image():
    text = (ROOT / "Dockerfile").read_text()
    for base in re.findall(r"^FROM (\S+)", text, re.M):
        if base != "scratch" and not DIGEST.match(base):
            yield f"Dockerfile: {base} is not pinned by its digest"
    last = text[text.rindex("\nFROM ") :]
    for needed in ("USER 65532:65532", 'HEALTHCHECK --interval=', 'CMD ["/usr/bin/outbox-relay", "health"]', 'ENTRYPOINT ["/usr/bin/outbox-relay"]'):
        if needed not in last:
            yield f"Dockerfile: the image lacks {needed}"
    for label in ("title", "description", "licenses", "version", "revision"):
        if f"org.opencontainers.image.{label}=" not in last:
            yield f"Dockerfile: the image lacks the label {label}"


def workflows():
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        text = path.read_text()
        for action, version in ACTION.findall(text):
            if not COMMIT.match(action) or not version:
                yield f"{path.name}: {action} is not pinned by its commit, with its version as comment"
        parsed = yaml.safe_load(text)
        if "permissions" not in parsed:
            yield f"{path.name}: says nothing about permissions"
        for name, job in parsed["jobs"].items():
            container = job.get("container")
            if container and not DIGEST.match(container if isinstance(container, str) else container["image"]):
                yield f"{path.name}: the container of {name} is not pinned by its digest"


def main():
    schema = json.loads(pathlib.Path(sys.argv[1]).read_text())
    parsed = yaml.safe_load((ROOT / COMPOSE).read_text())
    mistakes = [*compose(parsed, schema), *beside(schema), *relays(parsed), *monitoring(parsed), *image(), *workflows()]
    print("\n".join(mistakes) or f"packaging: {len(parsed['services'])} services, the image and the workflows are fine")
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
