"""Checks that a service can begin with what docs/how-to/consume-in-rust.md shows.

Takes the `[dependencies]` and the program from the page as they stand, makes a crate of its own of them, and runs `cargo check`, with the
library of this checkout and the versions of Cargo.lock. Needs no network: the crates are those of the workspace.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs/how-to/consume-in-rust.md"
PROGRAM = "<!-- from docs/examples/consumers/rust/minimal.rs -->"


def block(page: str, language: str, after: str) -> str:
    """Returns the first block of a language that follows a text."""
    found = re.search(re.escape(after) + rf"\s*```{language}\n(.*?)^```$", page, re.S | re.M)
    if not found:
        sys.exit(f"{PAGE.name} has no block of {language} after {after!r}")
    return found.group(1)


def packages(lock: pathlib.Path) -> set[tuple[str, str]]:
    return {(package["name"], package["version"]) for package in tomllib.loads(lock.read_text())["package"]}


def main() -> int:
    page = PAGE.read_text()
    manifest = [
        '[package]\nname = "documented"\nversion = "0.1.0"\nedition = "2024"\n',
        block(page, "toml", "This is all that a new service needs:"),
        f'[patch.crates-io]\nevent-outbox = {{ path = "{CHECKOUT / "crates/event-outbox"}" }}\n',
        "[workspace]\n",
    ]
    with tempfile.TemporaryDirectory() as directory:
        crate = pathlib.Path(directory)
        (crate / "src").mkdir()
        (crate / "src/main.rs").write_text(block(page, "rust", PROGRAM))
        (crate / "Cargo.toml").write_text("\n".join(manifest))
        shutil.copy(CHECKOUT / "Cargo.lock", crate / "Cargo.lock")
        # The lints have left most crates in the target directory, built with the same features.
        target = os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target")
        checked = subprocess.run(["cargo", "check", "--offline"], cwd=crate, env=os.environ | {"CARGO_TARGET_DIR": str(target)})
        if checked.returncode != 0:
            return 1
        strange = packages(crate / "Cargo.lock") - packages(CHECKOUT / "Cargo.lock") - {("documented", "0.1.0")}
        for name, version in sorted(strange):
            print(f"the crate has {name} {version}, which is not in Cargo.lock", file=sys.stderr)
        return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
