# All tests that need no server: under two minutes once the dependencies are built.
unit *arguments:
    cargo test --locked --workspace --lib {{arguments}}

# Warnings of clippy, and what the documents say about the repository.
check:
    cargo clippy --locked --workspace --all-targets -- -D warnings
    python3 -B .ci/check_docs.py

# Formats the code.
fmt:
    cargo fmt --all

# Builds the documentation site into target/book, and checks its links.
docs:
    .ci/book target/book

# The suite, against a real Postgres and a real Kafka.
test *arguments:
    cargo test --locked {{arguments}}

# The core of the suite on every supported Postgres, or on some: just postgres-versions 14 18
postgres-versions *arguments:
    python3 -B .ci/postgres_versions.py {{ arguments }}

# An outbox in use is upgraded from a former revision, whose binary is built: just upgrade-test v0.1.0
upgrade-test revision:
    .ci/upgrade_test {{ revision }}

# What the gate runs.
ci:
    .ci/run

# The whole flow, with servers of its own.
demo *arguments:
    cargo demo {{arguments}}

# All faults at random against relays under load: just soak --minutes 10 --seed 1
soak *arguments:
    cargo test --locked --test faults -- soak {{ arguments }}

# Thousands of random histories on quiet, busy and stalled servers: just histories --minutes 10 --seed 1
histories *arguments:
    cargo test --locked --test histories -- histories {{ arguments }}

# Measure against a Postgres and a Kafka of its own: just bench drain --events 1000000
bench *arguments:
    cargo bench --bench servers -- {{ arguments }}

# Two revisions in turns against the same servers: just compare main . drain --events 200000
compare *arguments:
    benches/compare {{ arguments }}

# What a captured table costs its application, beside the same loads without a trigger: just capture-cost 5
capture-cost *arguments:
    cargo bench --bench servers -- --run benches/capture/cost {{ arguments }}

# What the triggers of `import debezium` and `adopt` cost, and how long writers wait at the cut: just adopt-cost 5
adopt-cost *arguments:
    cargo bench --bench servers -- --run benches/adopt/cost {{ arguments }}

# What waking the relay costs writers at saturation, with `outbox_emit` and with the trigger: just wake-up-cost 5
wake-up-cost *arguments:
    cargo bench --bench servers -- --run benches/wake_up_cost {{ arguments }}

# The pure parts of an event's way, one at a time: just micro envelope
micro *arguments:
    cargo bench --bench micro -- {{ arguments }}

# Debezium and two polling loops beside the relay, on the same rows: just peers --events 200000 --plot docs/images/latency.svg
peers *arguments:
    cargo bench --bench peers -- {{ arguments }}

# The consumer runtime, per event and in batches, beside a loop with franz-go: just consumer-bench --events 200000
consumer-bench *arguments:
    cargo bench --bench consumers -- {{ arguments }}

# Records of a real Debezium connector beside those of the relay, for every configuration; takes minutes and fetches the connector
debezium-parity *arguments:
    cargo test --locked --test parity -- --include-ignored --nocapture {{ arguments }}

# What is published, into target/dist: tarball, Debian package, bill of materials, checksums.
dist:
    deploy/package/build target/built
    deploy/package/pack target/built target/dist

# The image's root file system without Docker, and the relay in it as the image runs it (as root)
image:
    deploy/package/build target/built
    rm -rf target/rootfs
    deploy/image/assemble target/built target/rootfs
    deploy/image/try target/rootfs

# All dependencies against the RustSec advisories. Fails without their database: ADVISORY_DB=file:///srv/advisory-db just advisories
advisories:
    .ci/advisories

# The public surface since the last release: which version it takes, and which lines of the changelog are missing
surface:
    python3 -B .ci/surface/surface.py check

# The public items of the library since the last release, or since a revision: just semver v0.1.0
semver *revision:
    .ci/semver {{ revision }}

# docker-compose.yml, Dockerfile, workflows, bill of materials
packaging:
    .ci/packaging

# Renders the Helm chart's golden files and deploy/kubernetes anew, and checks them
chart:
    .ci/chart --bless
