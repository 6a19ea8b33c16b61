# The relay alone: without the demo's own servers. OpenSSL and librdkafka are built from source, which takes some minutes.
#
# The base is pinned by the digest of its multi-platform index. This one was taken from public repositories that pin the same tag, not from
# the registry: docs/releasing.md has the command that reads the registry's own digest, for a refresh before each release.
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake
RUN cargo install cargo-auditable --version 0.7.7 --locked
WORKDIR /src
COPY . .
# The time of the commit, in seconds since 1970: the same source and time give the same binary.
ARG SOURCE_DATE_EPOCH=0
RUN deploy/package/build /out \
 && deploy/image/assemble /out/outbox-relay /rootfs

# No shell, no package manager: the relay, libc and the certificates of public authorities.
FROM scratch
COPY --from=build /rootfs /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Outbox Relay" \
      org.opencontainers.image.description="Transactional outbox relay: Postgres to Kafka, in order per entity" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV PATH=/usr/bin
# Inside the container alone; the health check asks it.
ENV RELAY_ADMIN_ADDRESS=127.0.0.1:9187
# Nobody in particular: the relay reads no file but those its settings name, and `run` writes none.
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["/usr/bin/outbox-relay", "health"]
ENTRYPOINT ["/usr/bin/outbox-relay"]
CMD ["run"]
