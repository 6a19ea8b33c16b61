# pip install -r requirements.txt; DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events python consume.py
import json
import os

import psycopg
from confluent_kafka import Consumer, Message

GROUP = "billing-python"


def apply(db: psycopg.Connection, event_id: str, record: Message) -> None:
    with db.transaction():
        first = db.execute("select event_once(%s, %s)", (GROUP, event_id)).fetchone()[0]
        if first:
            order = json.loads(record.value())["data"]
            db.execute(
                "insert into invoices (order_id, total_cents) values (%s, %s)",
                (order["orderId"], order["totalCents"]),
            )


def main() -> None:
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
            while True:
                record = consumer.poll(1.0)
                if record is None or record.error():
                    continue
                event_id = dict(record.headers())["event-id"].decode()
                apply(db, event_id, record)
                print("committed", event_id, flush=True)
                # Only now: were it committed first, a crash in between would lose the event.
                consumer.commit(record, asynchronous=False)
    except KeyboardInterrupt:
        pass
    finally:
        # Leaves the group at once, not when the session has run out.
        consumer.close()


if __name__ == "__main__":
    main()
