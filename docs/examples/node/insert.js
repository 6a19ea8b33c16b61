// npm install; DATABASE_URL=... node insert.js
import pg from 'pg';

async function placeOrder(client, id, customer, totalCents) {
  await client.query('begin');
  try {
    await client.query('insert into orders (id, customer, total_cents) values ($1, $2, $3)', [id, customer, totalCents]);
    await client.query("select outbox_emit('order', $1, 'OrderPlaced', $2, $3)", [
      id,
      { orderId: id, customer, totalCents },
      { 'correlation-id': 'req-81f2' },
    ]);
    await client.query('commit');
  } catch (error) {
    await client.query('rollback');
    throw error;
  }
}

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
try {
  await placeOrder(client, 'o-node', 'c-7', 4200);
} finally {
  await client.end();
}
