# shellcheck shell=bash
# Creates the users of docker-compose.yml. Postgres' image runs this file once, on an empty data directory. Nothing but this file uses the
# superuser: `app` owns its database and may create the outbox's roles; `relay` gets its rights from the service `rights`.
psql -v ON_ERROR_STOP=1 -v app="$(cat /run/secrets/app-password)" -v relay="$(cat /run/secrets/relay-password)" <<'SQL'
create role app login createrole password :'app';
create role relay login password :'relay';
create database app owner app;
SQL
