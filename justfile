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

# Measure against a Postgres and a Kafka of its own: just bench drain --events 1000000
bench *arguments:
    cargo bench --bench servers -- {{ arguments }}
