# Measure against a Postgres and a Kafka of its own: just bench drain --events 1000000
bench *arguments:
    cargo bench --bench servers -- {{ arguments }}
