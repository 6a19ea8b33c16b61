# The suite, against a real Postgres and a real Kafka.
test *arguments:
    cargo test --locked {{arguments}}

# What the gate runs.
ci:
    .ci/run

# The whole flow, with servers of its own.
demo *arguments:
    cargo run --release --locked -- demo {{arguments}}
