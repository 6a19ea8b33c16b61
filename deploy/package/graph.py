"""Reads which crates are linked into the published relay, and which C libraries those crates bring."""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELAY = "event-outbox-relay"

# Crates whose source has a C library in it: its name, its folder, its licence in SPDX's form, and the file with the licence.
BUNDLED = {
    "openssl-src": ("openssl", "openssl", "Apache-2.0", "LICENSE.txt"),
    "rdkafka-sys": ("librdkafka", "librdkafka", "BSD-2-Clause", "LICENSES.txt"),
    "curl-sys": ("curl", "curl", "curl", "COPYING"),
    "libz-sys": ("zlib", "src/zlib", "Zlib", "LICENSE"),
    "zstd-sys": ("zstd", "zstd", "BSD-3-Clause", "LICENSE"),
}


def host():
    """Returns the platform of the compiler, which is that of the binary."""
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return re.search(r"^host: (\S+)$", version, re.M).group(1)


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def linked():
    """Returns the id of the relay's package, the packages in the binary by id, and the ids that each depends on. Procedural macros and
    build scripts are not in the binary, with one exception: OpenSSL's sources come by a build script."""
    features = ["--locked", "--no-default-features", "--features", "tls", "--package", RELAY, "--target", host()]
    # `cargo metadata` resolves the features of all members together; the tree is that of the relay alone.
    tree = cargo("tree", *features, "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    found = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", host()))
    packages = {package["id"]: package for package in found["packages"]}
    is_linked = lambda package: (package["name"], "v" + package["version"]) in names or package["name"] == "openssl-src"
    inside = {id: package for id, package in packages.items() if is_linked(package)}
    edges = {}
    for node in found["resolve"]["nodes"]:
        if node["id"] in inside:
            needs = {dependency["pkg"] for dependency in node["deps"] if is_needed(dependency, packages)}
            edges[node["id"]] = sorted(needs & inside.keys())
    root = next(id for id, package in inside.items() if package["name"] == RELAY)
    return root, inside, edges


def is_needed(dependency, packages):
    kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
    return None in kinds or packages[dependency["pkg"]]["name"] == "openssl-src"


def bundled(package):
    """Returns name, version, licence and licence file of the C library in a package, or None."""
    if package["name"] not in BUNDLED:
        return None
    name, folder, licence, file = BUNDLED[package["name"]]
    folder = Path(package["manifest_path"]).parent / folder
    if package["name"] == "libz-sys":
        version = re.search(r'#define ZLIB_VERSION "([^"]+)"', (folder / "zlib.h").read_text()).group(1)
    else:
        version = package["version"].split("+", 1)[1].removeprefix("zstd.").removeprefix("curl-")
    return name, version, licence, folder / file
