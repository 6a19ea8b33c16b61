"""Prints the bill of materials of the published relay in CycloneDX 1.6: its crates, the C libraries in them, and who needs whom. Reads
Cargo.lock by `cargo metadata`; the same checkout gives the same bytes. With the binary as argument it fails if the binary's
own list of crates (by `cargo auditable`) lacks one of them."""

import json
import subprocess
import sys
import tempfile
import tomllib
import uuid
import zlib
from datetime import datetime, timezone
from os import environ
from pathlib import Path

from graph import ROOT, bundled, linked


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def licences(package):
    # Old crates separate alternatives by a slash.
    expression = (package["license"] or "").replace("/", " OR ")
    return [{"expression": expression}] if expression else []


def checksums():
    """Returns the SHA-256 of each crate's archive by name and version, as Cargo.lock has it."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}


def component(package, sums, kind="library"):
    found = {
        "type": kind,
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "description": " ".join((package["description"] or "").split()),
        "licenses": licences(package),
        "purl": purl(package),
    }
    checksum = sums.get((package["name"], package["version"]))
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return {name: value for name, value in found.items() if value}


def document():
    root, packages, edges = linked()
    sums = checksums()
    components, dependencies = [], []
    for id, package in sorted(packages.items(), key=lambda item: purl(item[1])):
        needs = [purl(packages[other]) for other in edges[id]]
        library = bundled(package)
        if library:
            name, version, licence, _ = library
            reference = f"pkg:generic/{name}@{version}"
            components.append({
                "type": "library", "bom-ref": reference, "name": name, "version": version,
                "licenses": [{"license": {"id": licence}}], "purl": reference,
                "properties": [{"name": "outbox-relay:source", "value": f"the sources in {package['name']} {package['version']}"}],
            })
            dependencies.append({"ref": reference, "dependsOn": []})
            needs.append(reference)
        if id != root:
            components.append(component(package, sums))
        dependencies.append({"ref": purl(package), "dependsOn": sorted(needs)})
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(packages[root], sums, "application")},
        "components": sorted(components, key=lambda component: component["bom-ref"]),
        "dependencies": sorted(dependencies, key=lambda dependency: dependency["ref"]),
    }
    bom["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bom, sort_keys=True)).urn
    if "SOURCE_DATE_EPOCH" in environ:
        moment = datetime.fromtimestamp(int(environ["SOURCE_DATE_EPOCH"]), timezone.utc)
        bom["metadata"]["timestamp"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return bom


def embedded(binary):
    """Returns the crates that a binary says it is built from, as pairs of name and version."""
    with tempfile.NamedTemporaryFile() as section:
        # Copies nothing but the section, which is not loaded with the program.
        subprocess.run(["objcopy", f"--dump-section=.dep-v0={section.name}", binary, "/dev/null"], capture_output=True)
        packed = Path(section.name).read_bytes()
    if not packed:
        sys.exit(f"error: {binary} has no list of its crates\nhint: build it with deploy/package/build")
    packages = json.loads(zlib.decompress(packed))["packages"]
    return {(package["name"], package["version"]) for package in packages if package.get("kind", "runtime") == "runtime"}


def main():
    bom = document()
    if len(sys.argv) > 1:
        own = bom["metadata"]["component"]
        listed = {(part["name"], part["version"]) for part in [own, *bom["components"]] if part["purl"].startswith("pkg:cargo/")}
        # OpenSSL's sources are a build dependency. The binary may name more: features of other members of the workspace.
        missing = {(name, version) for name, version in listed - embedded(sys.argv[1]) if name != "openssl-src"}
        if missing:
            sys.exit(f"error: the binary's own list lacks crates that it is built from: {sorted(missing)}")
    json.dump(bom, sys.stdout, indent=1, sort_keys=True)
    print()


main()
