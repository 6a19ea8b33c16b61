// npm install; DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events node consume.js
import { Consumer, MessagesStreamFallbackModes, MessagesStreamModes, stringDeserializers } from '@platformatic/kafka';
import pg from 'pg';

const GROUP = 'billing-node';

async function apply(db, eventId, record) {
  await db.query('begin');
  try {
    const { rows } = await db.query('select event_once($1, $2) as first', [GROUP, eventId]);
    if (rows[0].first) {
      const order = JSON.parse(record.value).data;
      await db.query('insert into invoices (order_id, total_cents) values ($1, $2)', [order.orderId, order.totalCents]);
    }
    await db.query('commit');
  } catch (error) {
    await db.query('rollback');
    throw error;
  }
}

const db = new pg.Client({ connectionString: process.env.DATABASE_URL });
await db.connect();

const consumer = new Consumer({
  clientId: GROUP,
  groupId: GROUP,
  // How soon others take over from a consumer that was killed.
  sessionTimeout: 10_000,
  bootstrapBrokers: process.env.KAFKA_BOOTSTRAP_SERVERS.split(','),
  deserializers: stringDeserializers,
});
const records = await consumer.consume({
  topics: [process.env.TOPIC],
  autocommit: false,
  mode: MessagesStreamModes.COMMITTED,
  fallbackMode: MessagesStreamFallbackModes.EARLIEST,
});
for await (const record of records) {
  const eventId = record.headers.get('event-id');
  await apply(db, eventId, record);
  console.log('committed', eventId);
  // Only now: were it committed first, a crash in between would lose the event.
  await record.commit();
}
