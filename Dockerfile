# The relay alone: without the demo's own servers. OpenSSL and librdkafka are built from source, which takes some minutes.
FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake \
 && rm -rf /var/lib/apt/lists/*
# The flags with which Debian builds C code: OpenSSL, libcurl and librdkafka read input from the network.
ENV CFLAGS="-O2 -fstack-protector-strong -fstack-clash-protection -D_FORTIFY_SOURCE=2"
ENV CXXFLAGS=$CFLAGS
WORKDIR /src
COPY . .
RUN cargo build --release --locked --no-default-features --bin outbox-relay

FROM debian:bookworm-slim
# The certificates of public authorities, for TLS to Postgres and Kafka.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/outbox-relay /usr/local/bin/outbox-relay
# Nobody in particular: the relay reads no file but those its settings name, and `run` writes none.
USER 65532:65532
ENTRYPOINT ["outbox-relay"]
CMD ["run"]
