"""What the documents say about the repository, checked: snippets, links, names of tests, the compose file."""

import pathlib
import re
import sys
import textwrap

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
FENCED = re.compile(r"<!-- from (\S+) -->\n```\w+\n(.*?)\n```", re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
TEST = re.compile(r"`((?:[a-z0-9_]+::)*([a-z0-9]+(?:_[a-z0-9]+){3,}))`")


def snippets(document, text):
    found = FENCED.findall(text)
    for path, snippet in found:
        # A snippet is a run of the file's lines, perhaps less indented.
        whole = (ROOT / path).read_text().splitlines()
        lines = snippet.splitlines()
        runs = ("\n".join(whole[at : at + len(lines)]) for at in range(len(whole) - len(lines) + 1))
        if snippet not in map(textwrap.dedent, runs):
            yield f"{document}: the snippet from {path} is not what the file says"
    if document.name == "README.md" and not found:
        yield f"{document}: no snippet found"


def links(document, text):
    for target in LINK.findall(text):
        if not (document.parent / target).exists():
            yield f"{document}: {target} does not exist"


def tests(document, text, sources):
    rows = [line for line in text.splitlines() if re.match(r"\| G\d+ \|", line)]
    for row in rows:
        names = TEST.findall(row)
        if not names:
            yield f"{document}: no test in {row[:6]}"
        for whole, name in names:
            # `poison::name` is a trial of tests/<suite>/poison.rs, a bare name a test of any file.
            module = whole.removesuffix(name).removesuffix("::")
            suites = (sources.get(f"tests/{suite}/{module}.rs", "") for suite in ("main", "faults", "histories"))
            place = "\n".join(suites if module else sources.values())
            if not re.search(rf"\bfn {name}\b", place):
                yield f"{document}: there is no test {whole}"
    if document.name in ("README.md", "guarantees.md") and len(rows) != 10:
        yield f"{document}: {len(rows)} guarantees, not 10"


def compose():
    parsed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = parsed["services"]
    for name, service in services.items():
        if "image" not in service:
            yield f"docker-compose.yml: {name} has no image"
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            if other not in services or (healthy and "healthcheck" not in services[other]):
                yield f"docker-compose.yml: {name} waits for {other}, which cannot tell"
    known = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))
    for setting in services["relay"]["environment"].keys() - known:
        yield f"docker-compose.yml: {setting} is no setting of .env.example"


def alerts():
    """Each alert leads to a heading of the runbook."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/runbook.md").read_text(), re.M)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        if path != "docs/runbook.md" or anchor not in anchors:
            yield f"alerts.yml: {rule['alert']} leads to {path}#{anchor}, which is not there"


def main():
    code = [path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.rs")]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in code}
    mistakes = [*compose(), *alerts()]
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text()
        mistakes += [*snippets(document, text), *links(document, text), *tests(document, text, sources)]
    print("\n".join(mistakes) or "documents: fine")
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
