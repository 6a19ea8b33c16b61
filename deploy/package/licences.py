"""Prints the licence texts of everything in the published relay: crates and C libraries, each text once, under the names it covers. Fails
if a package's text is not to be found."""

import re
import sys
from collections import defaultdict
from pathlib import Path

from graph import bundled, linked

FILE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.I)

HEADER = """Outbox Relay is licensed under the Apache License 2.0. The binary has the following software in it, whose licences ask that
their text goes along. A package with a choice of licences (OR) is used under any one of them."""


def files(package):
    """Returns the texts of a package's licence files by file name."""
    folder = Path(package["manifest_path"]).parent
    named = [path for path in sorted(folder.iterdir()) if FILE.match(path.name)]
    # Some have a folder LICENSES.
    found = [file for path in named for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if package["license_file"]:
        found.append(folder / package["license_file"])
    return {path.name: text(path) for path in found}


def text(path):
    lines = path.read_text(errors="replace").replace("\r\n", "\n").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def without_file(name, package):
    """Returns the text for a package that brings none: MIT's is the same everywhere but for its holder."""
    if package["license"] != "MIT" or not package["authors"]:
        sys.exit(f"error: {name} brings no licence text\nhint: say in deploy/package/licences.py where its text is")
    holders = ", ".join(re.sub(r"\s*<[^>]*>", "", author) for author in package["authors"])
    return MIT.format(holder=holders)


def main():
    _, packages, _ = linked()
    # By text, the packages under it.
    covered = defaultdict(list)
    for package in sorted(packages.values(), key=lambda package: (package["name"], package["version"])):
        name = f"{package['name']} {package['version']} ({package['license']})"
        for body in files(package).values() or [without_file(name, package)]:
            covered[body].append(name)
        library = bundled(package)
        if library:
            covered[text(library[3])].append(f"{library[0]} {library[1]} ({library[2]})")
    print(HEADER)
    for body, names in sorted(covered.items(), key=lambda item: item[1][0]):
        print("\n" + "=" * 80)
        print("\n".join(sorted(set(names))))
        print("=" * 80 + "\n")
        print(body)


MIT = """MIT License

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""

main()
