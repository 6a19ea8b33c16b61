# pip install -r requirements.txt; DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events python consume.py
import json
import os
import signal
import sys
import uuid

import psycopg
from confluent_kafka import Consumer, Message
from psycopg.pq import TransactionStatus

GROUP = "billing-python"

said = set()


def say_once(what: str, where: str = "") -> None:
    if what not in said:
        said.add(what)
        print(f"{what} {where}".strip(), file=sys.stderr, flush=True)


class Foreign(Exception):
    """A record that is no event for this consumer."""


def read(record: Message) -> tuple[uuid.UUID, tuple[str, int]]:
    """Returns the id and the order of an event."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers() or []}
    try:
        event_id = uuid.UUID(headers.get("event-id", ""))
    except ValueError:
        raise Foreign("no event-id") from None
    if headers.get("event-type") != "OrderPlaced":
        raise Foreign(f"no handler for the type {headers.get('event-type')!r}")
    if headers.get("event-version") != "1":
        raise Foreign(f"no handler for the version {headers.get('event-version')!r} of OrderPlaced")
    try:
        order = json.loads(record.value())["data"]
        return event_id, (str(order["orderId"]), int(order["totalCents"]))
    except (ValueError, KeyError, TypeError):
        raise Foreign("no order in an OrderPlaced") from None


def apply(db: psycopg.Connection, event_id: uuid.UUID, order: tuple[str, int]) -> None:
    with db.transaction():
        first = db.execute("select event_once(%s, %s)", (GROUP, event_id)).fetchone()[0]
        if first:
            db.execute("insert into invoices (order_id, total_cents) values (%s, %s)", order)
        # After an error that was caught, Postgres answers COMMIT with ROLLBACK, and psycopg does not look.
        if db.info.transaction_status != TransactionStatus.INTRANS:
            raise RuntimeError("a statement failed, so the commit would keep nothing; use a savepoint")


def consume(consumer: Consumer, db: psycopg.Connection, stopped: list) -> None:
    while not stopped:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if record.error():
            # A topic that does not exist is among them. The client goes on by itself.
            say_once(record.error().str())
            continue
        try:
            event_id, order = read(record)
        except Foreign as foreign:
            # A real service puts an event that it should know on a dead letter topic.
            say_once(f"skipped: {foreign}", f"at {record.partition()}/{record.offset()}")
        else:
            apply(db, event_id, order)
            print("committed", event_id, flush=True)
        # Only now: were it committed first, a crash in between would lose the event.
        consumer.commit(record, asynchronous=False)


def main() -> None:
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": GROUP,
            # How soon others take over from a consumer that was killed.
            "session.timeout.ms": 10_000,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([os.environ["TOPIC"]])
    try:
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as db:
            consume(consumer, db, stopped)
    finally:
        # Leaves the group at once, not when the session has run out.
        consumer.close()


if __name__ == "__main__":
    main()
