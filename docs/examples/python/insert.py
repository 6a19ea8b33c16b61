# pip install 'psycopg[binary]'; DATABASE_URL=... python insert.py
import os

import psycopg
from psycopg.types.json import Jsonb


def place_order(conn: psycopg.Connection, order_id: str, customer: str, total_cents: int) -> None:
    with conn.transaction():
        conn.execute(
            "insert into orders (id, customer, total_cents) values (%s, %s, %s)",
            (order_id, customer, total_cents),
        )
        conn.execute(
            "select outbox_emit('order', %s, 'OrderPlaced', %s, %s)",
            (
                order_id,
                Jsonb({"orderId": order_id, "customer": customer, "totalCents": total_cents}),
                Jsonb({"correlation-id": "req-81f2"}),
            ),
        )


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        place_order(conn, "o-python", "c-7", 4200)
