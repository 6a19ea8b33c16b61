"""Checks the Helm chart: its copies, schema, templates, rendered objects and refusals; and the manifests that are rendered from it.

`--bless` writes what is generated: copies in the chart, the settings of its schema, deploy/helm/golden and deploy/kubernetes.
"""

import difflib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
HELM = ROOT / "deploy/helm"
CHART = HELM / "outbox-relay"
MANIFESTS = ROOT / "deploy/kubernetes"
BLESS = "--bless" in sys.argv[1:]
MISTAKES = []
#: The oldest Kubernetes that Chart.yaml allows, and the newest whose schemas there are.
VERSIONS = (re.search(r">=(\d+\.\d+)", (CHART / "Chart.yaml").read_text())[1], kubernetes_validate.latest_version())
#: Templates of the plain manifests, by the folder that they go to. The test of Helm has no place there.
FOLDERS = {"migration": "migration", "deployment": "relay", "serviceaccount": "relay", "poddisruptionbudget": "relay"}
DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required, **properties):
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


#: The kinds of the Prometheus operator, which Kubernetes' schemas do not have: the fields that the chart uses, and no others.
OPERATOR = {
    "ServiceMonitor": closed(
        ["selector", "endpoints"],
        selector=closed(["matchLabels"], matchLabels=LABELS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ["port", "path", "authorization"],
                port={"type": "string"},
                path={"const": "/metrics"},
                interval=DURATION,
                scrapeTimeout=DURATION,
                authorization=closed(
                    ["type", "credentials"],
                    type={"const": "Bearer"},
                    credentials=closed(["name", "key"], name={"type": "string", "minLength": 1}, key={"type": "string", "minLength": 1}),
                ),
                relabelings={"type": "array"},
                metricRelabelings={"type": "array"},
            ),
        },
    ),
    "PrometheusRule": closed(
        ["groups"],
        groups={
            "type": "array",
            "items": closed(
                ["name", "rules"],
                name={"type": "string"},
                interval=DURATION,
                rules={
                    "type": "array",
                    "items": closed(
                        ["expr"],
                        alert={"type": "string"},
                        record={"type": "string"},
                        expr={"type": "string"},
                        labels=LABELS,
                        annotations=LABELS,
                        **{"for": DURATION},
                    ),
                },
            ),
        },
    ),
}


def mistake(text):
    MISTAKES.append(text)


def same(path, wanted):
    """Compares a generated file, or writes it."""
    found = path.read_text() if path.exists() else ""
    if found == wanted:
        return
    if BLESS:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted)
        return
    diff = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "stored", "rendered", lineterm="", n=1)
    name = path.relative_to(ROOT)
    mistake(f"{name} is stale; `just chart` writes it:\n" + "\n".join(list(diff)[:20]))


def helm(command, *arguments):
    # A Helm that was built from source takes Kubernetes for an old one unless it is told.
    arguments = [os.environ["HELM"], command, "--kube-version", VERSIONS[1], *arguments]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


def rendered(values, name="outbox-relay"):
    """Returns the text that Helm renders, or None."""
    output = helm("template", name, str(CHART), "--namespace", "outbox", "--values", str(values))
    if output.returncode:
        mistake(f"{values.name}: {output.stderr.strip()}")
        return None
    return output.stdout


def notes(values):
    """What Helm shows after an installation names the commands."""
    arguments = ["install", "outbox-relay", str(CHART), "--namespace", "outbox", "--dry-run=client", "--values", str(values)]
    output = subprocess.run([os.environ["HELM"], *arguments], cwd=ROOT, capture_output=True, text=True)
    shown = output.stdout.partition("\nNOTES:\n")[2]
    if re.search("incompatible with Kubernetes|cluster unreachable", output.stderr):
        print("chart: this Helm shows no notes without a cluster; they are not looked at")
    elif output.returncode or not re.search(r"kubectl -n outbox exec deploy/\S+ -- outbox-relay check\n", shown):
        mistake(f"{values.name}: the notes name no check: {shown}{output.stderr.strip()}")


def versions():
    """The chart, the examples and the file for Compose are of the version in Cargo.toml."""
    cargo = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    places = {
        "deploy/helm/outbox-relay/Chart.yaml": r'(?m)(?<=^version: )\S+$|(?<=^appVersion: ")[^"]+',
        "deploy/compose/compose.yaml": r"(?<=RELAY_VERSION:-)[^}]+",
        "deploy/kubernetes/example/migration/kustomization.yaml": r"(?<=newTag: )\S+",
        "deploy/kubernetes/example/relay/kustomization.yaml": r"(?<=newTag: )\S+",
    }
    for place, version in places.items():
        text = (ROOT / place).read_text()
        if not re.search(version, text):
            mistake(f"{place} names no version")
        same(ROOT / place, re.sub(version, cargo, text))


def accepted(accepts):
    """The schema of a setting, from the column `accepts` of docs/reference/settings.md."""
    number = re.fullmatch(r"an integer from (\d+) to (\d+)", accepts)
    if number:
        return {"type": ["integer", "string"], "minimum": int(number[1]), "maximum": int(number[2]), "pattern": "^[0-9]+$"}
    words = re.fullmatch(r"one of (.+)", accepts)
    if words:
        words = words[1].split(", ")
        # YAML reads the word off as false.
        return {"enum": words + ([False] if "off" in words else [])}
    if accepts == "true or false":
        return {"enum": [True, False, "true", "false"]}
    if accepts.startswith("a duration"):
        return {"type": "string", "pattern": "^ *[0-9]"}
    if re.match(r"\d+ to \d+ bytes, such as", accepts):
        return {"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]"}
    return {"type": "string", "minLength": 1}


def schema():
    """The settings of the schema are those of the binary. Names and values of the schema agree."""
    path = CHART / "values.schema.json"
    stored = json.loads(path.read_text())
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (.*) \|$", (ROOT / "docs/reference/settings.md").read_text(), re.M)
    known = {name: {"description": meaning, **accepted(accepts)} for name, accepts, meaning in rows}
    listed = set(re.findall(r"^(?:# )?((?:RELAY|DATABASE)_\w+|KAFKA_BOOTSTRAP_SERVERS)=", (ROOT / ".env.example").read_text(), re.M))
    if listed != set(known):
        mistake(f"docs/reference/settings.md and .env.example differ: {sorted(listed ^ set(known))}")
    stored["properties"]["settings"]["properties"] = known
    same(path, json.dumps(stored, indent=2, ensure_ascii=False) + "\n")
    jsonschema.Draft7Validator.check_schema(stored)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    compare_names("", values, stored)
    for name in values:
        if f"`{name}" not in readme:
            mistake(f"the chart's README.md does not name the value {name}")


def compare_names(place, values, node):
    """Every value has an entry in the schema, and every entry of a closed object a value."""
    properties = node.get("properties", {})
    if node.get("additionalProperties") is not False or "patternProperties" in node:
        return
    for name in set(values) ^ (set(properties) - {"global"}):
        if place.endswith("Probe.") and name not in values:
            continue
        mistake(f"{place}{name} stands in only one of values.yaml and values.schema.json")
    for name, value in values.items():
        if isinstance(value, dict) and name in properties:
            compare_names(f"{place}{name}.", value, properties[name])


def objects(text):
    return [one for one in yaml.safe_load_all(text) if one]


def valid(place, one):
    """Validates an object against the schemas of Kubernetes, or of the operator."""
    label = f"{place}: {one['kind']} {one['metadata']['name']}"
    if one["apiVersion"].startswith("monitoring.coreos.com/"):
        for error in jsonschema.Draft7Validator(OPERATOR[one["kind"]]).iter_errors(one["spec"]):
            mistake(f"{label}: {error.json_path}: {error.message}")
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            mistake(f"{label} in Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")


def pod_of(one):
    if one["kind"] == "Pod":
        return one["metadata"].get("labels", {}), one["spec"]
    template = one["spec"]["template"]
    return template["metadata"]["labels"], template["spec"]


def restricted(label, pod):
    """The pod keeps the rules of the Pod Security Standard `restricted`, and more."""
    context = pod["securityContext"]
    if not (context["runAsNonRoot"] and context["runAsUser"] and context["seccompProfile"]["type"] == "RuntimeDefault"):
        mistake(f"{label}: the pod may run as root, or without seccomp")
    if pod["automountServiceAccountToken"] or pod["enableServiceLinks"]:
        mistake(f"{label}: the pod gets a token or variables that it does not need")
    for container in pod["containers"] + pod.get("initContainers", []):
        context = container["securityContext"]
        if not context["readOnlyRootFilesystem"] or context["allowPrivilegeEscalation"] or context["capabilities"] != {"drop": ["ALL"]}:
            mistake(f"{label}: the container {container['name']} has more rights than none")
        if "resources" not in container:
            mistake(f"{label}: the container {container['name']} asks for no resources")
        volumes = {volume["name"] for volume in pod["volumes"]}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                mistake(f"{label}: there is no volume {mount['name']}")
        for variable in container.get("env", []):
            value = variable.get("value", "")
            if "://" in value and "@" in value:
                mistake(f"{label}: {variable['name']} has a password in it")
            if value.startswith("/etc/outbox-relay/") and value.rpartition("/")[2] not in mounted(pod):
                mistake(f"{label}: {variable['name']} names {value}, which is not mounted")


def mounted(pod):
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "settings"]
    return {item["path"] for source in volume["projected"]["sources"] for kind in source.values() for item in kind["items"]}


def together(place, found):
    """What refers to another object finds it."""
    pods = [pod_of(one) for one in found if one["kind"] in ("Deployment", "Job", "Pod")]
    for one in found:
        label = f"{place}: {one['kind']} {one['metadata']['name']}"
        if one["kind"] in ("Deployment", "Job", "Pod"):
            restricted(label, pod_of(one)[1])
        selectors = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }
        if one["kind"] in selectors:
            selector = selectors[one["kind"]](one["spec"])
            if not any(selector.items() <= labels.items() for labels, _ in pods):
                mistake(f"{label}: selects no pod")
        if one["kind"] == "ServiceMonitor":
            services = [other for other in found if other["kind"] == "Service"]
            selector = one["spec"]["selector"]["matchLabels"]
            if not any(selector.items() <= service["metadata"]["labels"].items() for service in services):
                mistake(f"{label}: selects no Service")
        if one["kind"] == "PrometheusRule":
            if one["spec"] != yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text()):
                mistake(f"{label}: the rules are not those of deploy/prometheus/alerts.yml")
        if one["kind"] == "ConfigMap":
            if json.loads(one["data"]["outbox-relay.json"]) != json.loads((ROOT / "deploy/grafana/outbox-relay.json").read_text()):
                mistake(f"{label}: the dashboard is not that of deploy/grafana")
        if one["metadata"].get("annotations", {}).get("helm.sh/hook", "").startswith("pre-install"):
            # Nothing of the release exists before this hook but hooks.
            account = one["spec"].get("template", {}).get("spec", {}).get("serviceAccountName")
            if account in [other["metadata"]["name"] for other in found if other["kind"] == "ServiceAccount"]:
                mistake(f"{label}: its service account does not exist yet when it runs")


def shortened(text):
    """Leaves out the contents of the chart's files, which `together` compares."""
    for path in sorted((CHART / "files").iterdir()):
        for indent in (2, 4):
            content = textwrap.indent(path.read_text().strip("\n"), " " * indent)
            # Helm indents empty lines too.
            content = content.replace("\n\n", "\n" + " " * indent + "\n")
            text = text.replace(content, " " * indent + f"# … files/{path.name}")
    # Helm 3 and 4 leave different empty lines.
    return re.sub(r"\s*\n", "\n", text)


def sets():
    kinds = set()
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        output = helm("lint", "--strict", str(CHART), "--values", str(values))
        if output.returncode:
            mistake(f"helm lint with {values.name}: {output.stdout}{output.stderr}")
        text = rendered(values)
        if text is None:
            continue
        same(HELM / "golden" / f"{values.stem.removesuffix('-values')}.yaml", shortened(text))
        found = objects(text)
        kinds |= {one["kind"] for one in found}
        for one in found:
            valid(values.name, one)
        together(values.name, found)
        notes(values)
    stored = {path.stem for path in (HELM / "golden").glob("*.yaml")}
    for name in stored - {path.stem.removesuffix("-values") for path in (CHART / "ci").glob("*-values.yaml")}:
        mistake(f"deploy/helm/golden/{name}.yaml: there are no such values")
    templates = {re.search(r"^kind: (\w+)$", path.read_text(), re.M)[1] for path in (CHART / "templates").rglob("*.yaml")}
    for kind in templates - kinds:
        mistake(f"no set of values renders a {kind}")
    return len(stored)


def refusals():
    """Each wrong value is refused, with the words that say what to do."""
    cases = yaml.safe_load((HELM / "refused.yaml").read_text())
    minimal = yaml.safe_load((CHART / "ci/minimal-values.yaml").read_text())
    for case in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(merged(minimal, case["values"]), file)
            file.flush()
            output = helm("template", "outbox-relay", str(CHART), "--values", file.name)
        for part in case["says"]:
            if not output.returncode or part not in output.stderr:
                mistake(f"refused.yaml: {case['values']} should be refused with {part!r}: {output.returncode} {output.stderr[-600:]}")
    return len(cases)


def merged(base, change):
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return {name: merged(base.get(name), change[name]) if name in change else base[name] for name in base | change}


def plain(one):
    """Removes what only Helm understands."""
    for labels in (one["metadata"].get("labels", {}),):
        labels.pop("helm.sh/chart", None)
        labels.pop("app.kubernetes.io/managed-by", None)
    annotations = {name: value for name, value in one["metadata"].pop("annotations", {}).items() if not name.startswith("helm.sh/")}
    if annotations:
        one["metadata"]["annotations"] = annotations
    # The namespace is that of kustomization.yaml, or of kubectl.
    one["metadata"].pop("namespace", None)
    return one


def manifests():
    """deploy/kubernetes: the same objects, for those who have no Helm."""
    text = rendered(MANIFESTS / "values.yaml")
    if text is None:
        return
    folders = {}
    for part in re.split(r"^---$", text, flags=re.M):
        source = re.search(r"^# Source: outbox-relay/templates/(.+)\.yaml$", part, re.M)
        folder = source and FOLDERS.get(source[1])
        for one in objects(part) if folder else []:
            folders.setdefault(folder, {})[f"{source[1]}.yaml"] = plain(one)
    head = "# Rendered from deploy/helm/outbox-relay with deploy/kubernetes/values.yaml; `just chart` writes it.\n"
    for folder, files in folders.items():
        for name, one in files.items():
            valid(f"deploy/kubernetes/{folder}/{name}", one)
            same(MANIFESTS / folder / name, head + yaml.safe_dump(one, sort_keys=False, width=1000))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": sorted(files),
        }
        same(MANIFESTS / folder / "kustomization.yaml", head + yaml.safe_dump(kustomization, sort_keys=False))
        for path in (MANIFESTS / folder).glob("*.yaml"):
            if path.name not in files and path.name != "kustomization.yaml":
                mistake(f"{path.relative_to(ROOT)} is rendered from no template")
    together("deploy/kubernetes", [one for files in folders.values() for one in files.values()])
    kustomized()


def kustomized():
    """The folders, and the overlay that the documents show, build."""
    if not pathlib.Path(os.environ["KUBECTL"]).exists():
        print("chart: there is no kubectl here; kustomizations are not built")
        return
    for folder in ("migration", "relay", "example/migration", "example/relay"):
        output = subprocess.run([os.environ["KUBECTL"], "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True)
        if output.returncode:
            mistake(f"deploy/kubernetes/{folder}: {output.stderr.strip()}")
            continue
        found = objects(output.stdout)
        for one in found:
            valid(f"deploy/kubernetes/{folder}", one)
        if folder.startswith("example/") and not all(one["metadata"].get("namespace") == "outbox" for one in found):
            mistake(f"deploy/kubernetes/{folder}: the namespace is not set everywhere")


def pages():
    """The values and the commands for Helm of docs/how-to/deploy-….md work together, and every shell block is correct shell."""
    commands = 0
    for page in sorted((ROOT / "docs/how-to").glob("deploy*.md")):
        text = page.read_text()
        blocks = [textwrap.dedent(block) for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.M | re.S)]
        for block in blocks:
            output = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
            if output.returncode:
                mistake(f"{page.name}: {output.stderr.strip()}")
        values = re.search(r"^`values.yaml`:\n\n(?:<!-- .* -->\n)?```yaml\n(.*?)^```$", text, re.M | re.S)
        for command in re.findall(r"^helm (?:install|upgrade) (.*)$", "\n".join(blocks).replace("\\\n", ""), re.M):
            commands += 1
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(values[1])
                file.flush()
                words = [file.name if word == "values.yaml" else word for word in shlex.split(command)]
                output = helm("template", *words)
            if output.returncode:
                mistake(f"{page.name}: helm {command}: {output.stderr.strip()}")
                continue
            for one in objects(output.stdout):
                valid(page.name, one)
            together(page.name, objects(output.stdout))
    if not commands:
        mistake("docs/how-to: no command for Helm was found")


def main():
    for copy, original in (("alerts.yml", "prometheus/alerts.yml"), ("outbox-relay.json", "grafana/outbox-relay.json")):
        same(CHART / "files" / copy, (ROOT / "deploy" / original).read_text())
    versions()
    schema()
    count = sets()
    refused = refusals()
    manifests()
    pages()
    print("\n".join(MISTAKES) or f"chart: {count} sets of values and {refused} refusals are as they should be, in Kubernetes {' and '.join(VERSIONS)}")
    return bool(MISTAKES)


if __name__ == "__main__":
    sys.exit(main())
