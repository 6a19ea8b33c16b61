"""The public surface: what users, scripts, dashboards and applications depend on. docs/releasing.md says how it is used.

The present surface is read from the pages of docs/reference (which a test compares with the binary), the JSON schemas, the notices in the
sources, and sql.txt (which a test compares with a migrated database). released.json is that of the last release.

    surface.py check      fails if CHANGELOG.md lacks a line that a change since the last release needs
    surface.py release    fails also unless the version in Cargo.toml is high enough for the changes since the last release
    surface.py record     records the present surface as that of the version in Cargo.toml, which is being released
"""

import json
import pathlib
import re
import sys
import tomllib

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
REFERENCE = ROOT / "docs/reference"
RELEASED = FOLDER / "released.json"


def rows(page):
    """Returns the cells of the generated table of a page of docs/reference."""
    text = (REFERENCE / page).read_text()
    part = re.search(r"<!-- outbox-relay reference -->\n(.*?)<!-- end -->", text, re.S).group(1)
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def settings():
    return {name.strip("`"): f"default {default or 'none'}; {accepts}" for name, default, accepts, _ in rows("settings.md")}


def codes():
    return {re.search(r"OR-\d{4}", code).group(): name for code, name, _ in rows("codes.md")}


def metrics():
    return {name.strip("`"): f"{kind}; labels: {labels or 'none'}" for name, kind, labels, _ in rows("metrics.md")}


def commands():
    """Returns every command, each of its flags, and each of its exit codes."""
    found = {}
    page = (REFERENCE / "commands.md").read_text()
    for name, text in re.findall(r"^## (outbox-relay[^\n]*)\n\n```text\n(.*?)\n```", page, re.S | re.M):
        found[name] = "command"
        for flag in re.findall(r"^ +(?:-\w, +)?(--[\w-]+(?: <[^>]+>)?)", text, re.M):
            flag, _, value = flag.partition(" ")
            found[f"{name} {flag}"] = f"takes {value}" if value else "flag"
        for argument in re.findall(r"^  ([<\[][A-Z_]+[>\]](?:\.\.\.)?)", text, re.M):
            found[f"{name} {argument}"] = "argument"
        exits = text.partition("\nExit codes:\n")[2]
        for code in re.findall(r"^  (\d+) ", exits, re.M):
            found[f"{name} exit code {code}"] = "exit code"
    return found


def notices():
    source = (ROOT / "crates/event-outbox/src/notice.rs").read_text()
    return {name: "notice" for name in re.findall(r'^    [A-Z]\w+ "([a-z_]+)" "', source, re.M)}


def findings():
    text = (REFERENCE / "findings.md").read_text()
    found = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| ([^|]*) \|", text, re.M)
    return {name: severity.strip() for names, severity in found for name in re.findall(r"`([a-z-]+)`", names)}


def sql():
    """Returns tables, views and indexes by the page, and columns, functions and triggers by a database."""
    found = {f"{kind} {name.strip('`')}": kind for name, kind in rows("sql.md") if kind not in ("function", "trigger")}
    for line in (FOLDER / "sql.txt").read_text().splitlines():
        name, _, detail = line.partition(": ")
        found[name] = detail
    return found


def members():
    """Returns the members of every JSON document by their path."""
    schemas = {path.name: json.loads(path.read_text()) for path in sorted((REFERENCE / "schemas").glob("*.json"))}
    found = {}
    for name, schema in schemas.items():
        if name != "common.json":
            walk(schemas, name, schema, name.removesuffix(".json"), found, ())
    return found


def walk(schemas, file, schema, path, found, seen):
    """Adds the members below `schema`; `seen` are the references on the way, which may lead back."""
    if "$ref" in schema:
        other, _, pointer = schema["$ref"].partition("#")
        other = other or file
        if (other, pointer) in seen:
            return
        target = schemas[other]
        for key in pointer.split("/")[1:]:
            target = target[key]
        walk(schemas, other, target, path, found, (*seen, (other, pointer)))
    for choice in schema.get("anyOf", []):
        walk(schemas, file, choice, path, found, seen)
    for member, inner in schema.get("properties", {}).items():
        needed = "always there" if member in schema.get("required", []) else "may be missing"
        found[f"{path} {member}"] = f"{kind(inner)}; {needed}"
        walk(schemas, file, inner, f"{path} {member}", found, seen)
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            walk(schemas, file, schema[key], path + mark, found, seen)


def kind(schema):
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return f"always {schema['const']}"
    if "anyOf" in schema:
        return " or ".join(kind(choice) for choice in schema["anyOf"])
    types = schema.get("type", "any")
    return types if isinstance(types, str) else " or ".join(types)


# Each part of the surface: what one of its items is called, and where the items come from.
PARTS = {
    "settings": ("setting", settings),
    "commands": ("command line", commands),
    "json": ("JSON member", members),
    "codes": ("code", codes),
    "notices": ("notice", notices),
    "findings": ("finding", findings),
    "metrics": ("metric", metrics),
    "sql": ("SQL object", sql),
}


def surface():
    return {part: dict(sorted(items().items())) for part, (_, items) in PARTS.items()}


def compare(before, after):
    """Returns the changes as (is_breaking, name, what happened). Whoever may rely on an item is broken by its end and by its change; an item
    that is new breaks nobody."""
    changes = []
    for part, (word, _) in PARTS.items():
        old, new = before.get(part, {}), after.get(part, {})
        changes += [(True, name, f"the {word} {name} is gone") for name in sorted(old.keys() - new.keys())]
        for name in sorted(old.keys() & new.keys()):
            if old[name] != new[name]:
                promised = old[name].replace("may be missing", "always there") == new[name]
                changes.append((not promised, name, f"the {word} {name} has changed: {old[name]!r} is now {new[name]!r}"))
        changes += [(False, name, f"the {word} {name} is new") for name in sorted(new.keys() - old.keys())]
    return changes


def next_version(released, changes):
    """Returns the lowest version that the changes allow. Below 1.0 the second number stands for what breaks."""
    major, minor, patch = map(int, released.split("."))
    breaking = any(change[0] for change in changes)
    if major > 0:
        return f"{major + 1}.0.0" if breaking else f"{major}.{minor + 1}.0" if changes else f"{major}.{minor}.{patch + 1}"
    return f"0.{minor + 1}.0" if breaking else f"0.{minor}.{patch + 1}"


def unreleased(changelog):
    """Returns the part of the changelog for the coming release."""
    return changelog.partition("## [Unreleased]")[2].partition("\n## [")[0]


def missing_lines(changes, changelog):
    """Returns what the changelog does not say: each breaking change by its name, and that something was added."""
    text = unreleased(changelog)
    # The last word: the flag, the member, the column; of a function its name.
    key = lambda name: re.split(r"[ .]", re.sub(r"\(.*", "", name).rstrip("]>[<"))[-1]
    missing = [
        f"{what}: this breaks users. CHANGELOG.md needs a line under [Unreleased], in Changed or Removed, that names `{key(name)}`"
        for breaking, name, what in changes
        if breaking and not re.search(rf"`[^`]*(?<!\w){re.escape(key(name))}(?!\w)[^`]*`", text)
    ]
    added = [what for breaking, _, what in changes if not breaking]
    if added and "### Added" not in text and "### Changed" not in text:
        missing.append(f"{added[0]}, and {len(added) - 1} more: CHANGELOG.md needs a line under [Unreleased], in Added")
    return missing


def number(version):
    return tuple(map(int, version.split("-")[0].split(".")))


def judge(current, released, version, changelog, releasing):
    """Returns the report's lines and the mistakes. `released` is None before the first release."""
    if released is None:
        return [f"no release is recorded yet: {version} will be the first, and any version will do"], []
    changes = compare(released["surface"], current)
    lowest = next_version(released["version"], changes)
    breaking = sum(1 for change in changes if change[0])
    report = [what for _, _, what in changes]
    report.append(f"since {released['version']}: {len(changes)} changes, {breaking} of them breaking; the next version is {lowest} or higher")
    mistakes = missing_lines(changes, changelog)
    if releasing and number(version) < number(lowest):
        mistakes.append(f"the version {version} in Cargo.toml is too low: it has to be {lowest} or higher")
    return report, mistakes


def main(command):
    now = surface()
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if command == "record":
        RELEASED.write_text(json.dumps({"version": version, "surface": now}, indent=1, ensure_ascii=False) + "\n")
        return 0
    released = json.loads(RELEASED.read_text()) if RELEASED.exists() else None
    report, mistakes = judge(now, released, version, (ROOT / "CHANGELOG.md").read_text(), command == "release")
    print("\n".join(report))
    for mistake in mistakes:
        print(f"error: {mistake}", file=sys.stderr)
    print("surface: " + ", ".join(f"{len(items)} {part}" for part, items in now.items()))
    return 1 if mistakes else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("check", "release", "record"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
