"""Counts doc comments that begin without a verb and without a subject ("Of the lanes' rows", "How often ...", "What is said").

A first sentence has a verb in the third person and its object, or it names the thing: "Returns the lanes.", "The lanes of one worker."
`--list` prints the others; without it the check fails when they are more than 2 % of all.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("src", "crates", "tests", "benches", "docs/examples", "examples")
MOST_PERCENT = 2.0
#: First words that are neither a verb nor the name of a thing.
BARE = set(
    """about above according across after again against all along also although among and any anybody anything around as aside at away because
    before behind below beneath beside between beyond both but by despite down during each either else enough even every everybody everyone
    everything except first for from further hardly here how however if in inside instead into it its itself just last later less like long
    longer many merely more most much near neither never next nobody none nor nothing not now of off often on once only onto or other others
    otherwise our ours out outside over own past per perhaps rather same since so some somebody something soon still such than that their them
    then there these they this those though through throughout till to together toward towards under unless until up upon us via we what whatever
    when whenever where whereas wherever whether which whichever while who whoever whom whose why with within without yet""".split()
)
#: Words of the list that may begin a good sentence.
THING = re.compile(r"^(?:Each|Every|All|Both|Some|Many|Most|This|These|None of|Nothing|Nobody|Everything|Any) (?:\w+|`)")


def blocks(text):
    """Yields line number and first line of each doc comment."""
    previous = None
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*(///|//!)(?!/) ?(.*)", line)
        kind = found.group(1) if found else None
        if found and kind != previous and found.group(2).strip():
            yield number, found.group(2).strip()
        previous = kind


def is_bare(first):
    word = re.match(r"[A-Za-z']+", first)
    if not word or word.group(0).lower() not in BARE:
        return False
    return not THING.match(first)


def main():
    total, bare = 0, []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.rs")):
            for number, first in blocks(path.read_text()):
                total += 1
                if is_bare(first):
                    bare.append(f"{path.relative_to(ROOT)}:{number}: {first[:100]}")
    if "--list" in sys.argv[1:]:
        print("\n".join(bare))
    percent = 100 * len(bare) / max(total, 1)
    print(f"doc comments: {len(bare)} of {total} begin without a verb and a subject ({percent:.1f} %)")
    return 0 if percent <= MOST_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
