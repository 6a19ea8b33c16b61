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

# What the gate runs.
ci:
    .ci/run

# The whole flow, with servers of its own.
demo *arguments:
    cargo run --release --locked -- demo {{arguments}}

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

# The pure parts of an event's way, one at a time: just micro envelope
micro *arguments:
    cargo bench --bench micro -- {{ arguments }}

# Debezium and the articles' loop beside the relay, on the same rows: just peers --events 200000
peers *arguments:
    cargo bench --bench peers -- {{ arguments }}

# The binary as it is published, with its line tables in a separate file that debuggers find by its link
dist:
    cargo build --locked --profile dist --bin outbox-relay
    objcopy --only-keep-debug target/dist/outbox-relay target/dist/outbox-relay.debug
    objcopy --strip-debug --add-gnu-debuglink=target/dist/outbox-relay.debug target/dist/outbox-relay
