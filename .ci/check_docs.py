"""Checks what the documents say about the repository, and that they say it once."""

import pathlib
import re
import subprocess
import sys
import textwrap

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FENCED = re.compile(r"<!-- from (\S+) -->\n```\w+\n(.*?)\n```", re.S)
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```$", re.S | re.M)
HTML_COMMENT = re.compile(r"<!--.*?-->", re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")
GENERATED = re.compile(r"<!-- outbox-relay reference -->.*?<!-- end -->", re.S)
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.M)
TEST = re.compile(r"(?:[a-z0-9_]+::)*([a-z0-9]+(?:_[a-z0-9]+){3,})")
RUST_PATH = re.compile(r"[A-Za-z_]\w*(?:::[A-Za-z_]\w*)+")
FILE_PATH = re.compile(r"(?:\.ci|benches|crates|deploy|docs|examples|migrations|src|tests)/[\w./-]+\w")
SETTING = re.compile(r"\b(?:RELAY|KAFKA)_[A-Z0-9_]*[A-Z0-9]\b")
OWN_CODE = re.compile(r"\bOR-(\d{4})\b")
# A sentence of so many words is not repeated by chance.
REPEATED_WORDS = 12
# Underscores of a name that only a test has.
LONG_NAME = 6


def prose(text):
    """A page without code blocks and comments."""
    return HTML_COMMENT.sub("", CODE_BLOCK.sub("", text))


def code_spans(text):
    """What stands in backticks, also where a line ends within."""
    return CODE.findall(re.sub(r"(?<!\n)\n\s*(?![\s|#>*-]|\d+\.)", " ", prose(text)))


def anchors(text):
    """The anchors of a page's headings, as GitHub and mdBook make them."""
    found, seen = set(), {}
    for heading in HEADING.findall(CODE_BLOCK.sub("", text)):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def snippets(page, text):
    for path, snippet in FENCED.findall(text):
        if not (ROOT / path).is_file():
            yield f"{page}: there is no file {path} for a snippet"
            continue
        # A snippet is a run of the file's lines, perhaps less indented.
        whole = (ROOT / path).read_text().splitlines()
        lines = snippet.splitlines()
        runs = ("\n".join(whole[at : at + len(lines)]) for at in range(len(whole) - len(lines) + 1))
        if snippet not in map(textwrap.dedent, runs):
            yield f"{page}: the snippet from {path} is not what the file says"


def links(page, text, pages):
    for target in LINK.findall(prose(text)):
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not file.exists():
            yield f"{page}: {target} does not exist"
            continue
        if page.startswith("docs/") and not file.is_relative_to(DOCS):
            yield f"{page}: {target} is outside of docs/ and not on the site: name it in backticks"
        if anchor and file.suffix == ".md" and anchor not in anchors(pages[file.relative_to(ROOT).as_posix()]):
            yield f"{page}: {target} has no such heading"


def summary(pages):
    """Every page is on the site, once."""
    listed = LINK.findall(pages["docs/SUMMARY.md"])
    for target in {target for target in listed if listed.count(target) > 1}:
        yield f"docs/SUMMARY.md: {target} is listed twice"
    for page in pages:
        if page.startswith("docs/") and page != "docs/SUMMARY.md" and page.removeprefix("docs/") not in listed:
            yield f"docs/SUMMARY.md: {page} is missing"


def guarantees(text):
    """Each guarantee has tests, and they exist (see names_of_tests)."""
    page = "docs/explanation/guarantees.md"
    sections = re.split(r"^## (G\d+)$", text, flags=re.M)[1:]
    found = dict(zip(sections[::2], sections[1::2]))
    if list(found) != [f"G{number}" for number in range(1, 11)]:
        yield f"{page}: the sections are not G1 to G10"
    for name, section in found.items():
        if not any(TEST.fullmatch(code) for code in code_spans(section.partition("**Tests.**")[2])):
            yield f"{page}: no test in {name}"


def security(text):
    """Each section of the security model names a test, and so does each row of its tables (see names_of_tests). What is shipped is checked by
    steps of CI instead."""
    page = "docs/explanation/security.md"
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        is_shipped = title == "What is shipped"
        if not is_shipped and not any("::" in code and TEST.fullmatch(code) for code in code_spans(body)):
            yield f"{page}: no test in the section {title}"
        for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
            head, _, *rows = table.splitlines()
            if not head.rstrip(" |").endswith("| checked by" if is_shipped else "| test"):
                yield f"{page}: a table of the section {title} has no column of tests"
            for row in rows:
                cell = row.rstrip(" |").rpartition(" | ")[2]
                named = [code for code in code_spans(cell) if is_shipped or "::" in code and TEST.fullmatch(code)]
                if not named and not cell.startswith(("the same", "the release workflow")):
                    yield f"{page}: no test in the row {row[:60]}"


def names_of_tests(page, text, sources):
    """A name of four words or more behind a module is that of a test, and so is a long one without."""
    for code in code_spans(text):
        match = TEST.fullmatch(code)
        if not match or ("::" not in code and code.count("_") < LONG_NAME):
            continue
        name = match.group(1)
        module = code.removesuffix(name).removesuffix("::").rpartition("::")[2]
        # `poison::name` is a test of a file poison.rs, a bare name is one of any file; other names in the sources are no tests.
        places = [source for path, source in sources.items() if not module or path.endswith(f"/{module}.rs")]
        if not any(name in place and re.search(rf"\b{'fn ' if module else ''}{name}\b", place) for place in places):
            yield f"{page}: there is no {code}"


def rust_paths(page, text, sources):
    """A `Type::name` or `module::name` in backticks is in the sources."""
    for code in code_spans(text):
        for path in RUST_PATH.findall(code):
            parts = path.split("::")
            owner, name = parts[-2], parts[-1]
            # Lower-case owners are modules: a file of that name, or an inline module.
            kind = r"mod" if owner[0].islower() else r"(?:struct|enum|trait|type|union|impl)\b(?:<[^>]*>)?"
            declared = re.compile(rf"\b{kind}\s+{owner}\b|^impl\b[^{{\n]*\b{owner}\b", re.M)
            named = re.compile(rf"\b{name}\b")
            files = ((path, source) for path, source in sources.items() if name in source and named.search(source))
            if not any(declared.search(source) or file.endswith((f"/{owner}.rs", f"/{owner}/{name}.rs")) for file, source in files):
                yield f"{page}: `{path}` is nowhere in the sources"


def files(page, text):
    """A path in backticks exists; NAME and … stand for something."""
    for code in code_spans(text):
        path = code.partition("#")[0].rstrip("/")
        if FILE_PATH.fullmatch(path) and not re.search(r"NAME|NNNN|DIRECTORY", path) and not (ROOT / path).exists():
            yield f"{page}: `{code}` does not exist"


def settings(page, text, known):
    for name in SETTING.findall(prose(text)):
        bare = name.removesuffix("_FILE")
        if bare.startswith("RELAY_") and bare not in known | {"RELAY_USER"}:
            yield f"{page}: {name} is no setting of .env.example"


def metrics(page, text, known):
    for name in re.findall(r"\boutbox_[a-z_]+", prose(text)):
        if name not in known:
            yield f"{page}: {name} is no metric of docs/reference/metrics.md, and in no source and no migration"


def codes(page, text, known):
    for number in OWN_CODE.findall(text):
        if number not in known:
            yield f"{page}: OR-{number} has no entry in the runbook"


def tables(page, text):
    """A key, a first cell that begins with code, stands once in its table; so does a whole row."""
    for table in re.findall(r"(?:^\|.*\n)+", prose(text) + "\n", re.M):
        keys, rows = set(), set()
        for row in table.splitlines()[2:]:
            key = re.split(r"(?<!\\)\|", row)[1].strip()
            if row in rows or (key.startswith("`") and key in keys):
                yield f"{page}: {key} stands twice in a table"
            keys.add(key)
            rows.add(row)


def sentences(text):
    """The sentences of a page, without markup: of paragraphs, list items and cells of tables. Not those that the binary writes."""
    text = GENERATED.sub("", text)
    text = re.sub(r"^\|[-| ]+\|$", "", prose(text), flags=re.M)
    text = HEADING.sub("", text)
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) |\||^> ", text, flags=re.M)
    for block in blocks:
        block = re.sub(r"\]\([^)]*\)", "", " ".join(block.split()))
        for sentence in re.split(r"(?<=[.:;!?]) ", block):
            words = re.findall(r"[\w-]+", sentence.lower())
            if len(words) >= REPEATED_WORDS:
                yield " ".join(words), sentence


def repeated(pages):
    """No sentence is written twice, in one page or in two."""
    where = {}
    for page, text in pages.items():
        if page == "CHANGELOG.md":
            continue
        for words, sentence in sentences(text):
            where.setdefault(words, []).append((page, sentence))
    for found in where.values():
        if len(found) > 1:
            on = ", ".join(page for page, _ in found)
            yield f"{on}: written {len(found)} times: {found[0][1][:100]}"


def migrations():
    """The head of a migration names its own file: `-- 0004 health: …` in 0004_health.sql."""
    for file in sorted((ROOT / "migrations").glob("*.sql")):
        wanted = "-- " + file.stem.replace("_", " ") + ": "
        if not file.read_text().startswith(wanted):
            yield f"migrations/{file.name}: does not begin with {wanted!r}"


def documents_named_in_sources(pages):
    """A page that a source, a hint or an alert names exists, and so does its heading."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in tracked.stdout.splitlines():
        if not (ROOT / path).is_file() or path.startswith(".ci/"):
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        for page, anchor in re.findall(r"\b(docs/[\w./-]+\.md)(?:#([\w-]+))?", text):
            if page not in pages:
                yield f"{path}: names {page}, which is not there"
            elif anchor and anchor not in anchors(pages[page]):
                yield f"{path}: names {page}#{anchor}, which has no such heading"


def alerts(pages):
    """Each alert leads to a heading of the runbook, wherever the runbook is served."""
    page = "docs/how-to/runbook.md"
    for file in ("alerts.yml", "consumers.yml"):
        rules = yaml.safe_load((ROOT / "deploy/prometheus" / file).read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
            path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            if "$externalLabels.outbox_runbook" not in path or anchor not in anchors(pages[page]):
                yield f"{file}: {rule['alert']} leads to {path}#{anchor}, which is not there"


def main():
    folders = [folder for folder in ("src", "tests", "crates", "benches", "examples", "docs/examples") if (ROOT / folder).exists()]
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.rs")
    }
    pages = {
        path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
    }
    known_settings = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))
    migrated = [path.read_text() for path in (ROOT / "migrations").glob("*.sql")]
    known_names = set(re.findall(r"\w+", "\n".join([*sources.values(), *migrated, pages["docs/reference/metrics.md"]])))
    known_codes = set(re.findall(r"^### OR-(\d{4}) ", pages["docs/how-to/runbook.md"], re.M))
    mistakes = [
        *migrations(),
        *alerts(pages),
        *summary(pages),
        *guarantees(pages["docs/explanation/guarantees.md"]),
        *security(pages["docs/explanation/security.md"]),
        *documents_named_in_sources(pages),
        *repeated(pages),
    ]
    if not FENCED.search(pages["README.md"]):
        mistakes.append("README.md: no snippet found")
    for page, text in pages.items():
        mistakes += [*snippets(page, text), *links(page, text, pages), *tables(page, text)]
        # What was changed is told in the words of its time.
        if page != "CHANGELOG.md":
            mistakes += [*names_of_tests(page, text, sources), *rust_paths(page, text, sources), *files(page, text)]
            mistakes += [*settings(page, text, known_settings), *codes(page, text, known_codes)]
            mistakes += metrics(page, text, known_names)
    print("\n".join(mistakes) or f"documents: {len(pages)} pages are fine")
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
