// npm install; DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events node consume.js
import { setTimeout } from 'node:timers/promises';
import { Consumer, MessagesStreamFallbackModes, MessagesStreamModes, stringDeserializers } from '@platformatic/kafka';
import pg from 'pg';

const GROUP = 'billing-node';
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const said = new Set();

function sayOnce(what, where = '') {
  if (!said.has(what)) {
    said.add(what);
    console.error(what, where);
  }
}

// Returns the id and the order of an event, or why the record is no event for this consumer.
function read(record) {
  const header = (name) => record.headers.get(name);
  const eventId = header('event-id') ?? '';
  if (!UUID.test(eventId)) return { foreign: 'no event-id' };
  if (header('event-type') !== 'OrderPlaced') return { foreign: `no handler for the type "${header('event-type')}"` };
  if (header('event-version') !== '1') return { foreign: `no handler for the version "${header('event-version')}" of OrderPlaced` };
  try {
    const { orderId, totalCents } = JSON.parse(record.value).data;
    if (typeof orderId === 'string' && Number.isInteger(totalCents)) return { eventId, order: [orderId, totalCents] };
  } catch {
    // A value that is no JSON is no order either.
  }
  return { foreign: 'no order in an OrderPlaced' };
}

async function apply(db, eventId, order) {
  await db.query('begin');
  try {
    const { rows } = await db.query('select event_once($1, $2) as first', [GROUP, eventId]);
    if (rows[0].first) {
      await db.query('insert into invoices (order_id, total_cents) values ($1, $2)', order);
    }
    const { command } = await db.query('commit');
    // After an error that was caught, Postgres answers COMMIT with ROLLBACK, and pg reports no error.
    if (command !== 'COMMIT') throw new Error('a statement failed, so nothing was committed; use a savepoint');
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

let records;
let stopped = false;
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    stopped = true;
    records?.close();
  });
}

async function open() {
  while (!stopped) {
    try {
      return await consumer.consume({
        topics: [process.env.TOPIC],
        autocommit: false,
        mode: MessagesStreamModes.COMMITTED,
        fallbackMode: MessagesStreamFallbackModes.EARLIEST,
      });
    } catch (error) {
      if (!error.findBy?.('apiId', 'UNKNOWN_TOPIC_OR_PARTITION')) throw error;
      sayOnce('the topic does not exist yet:', process.env.TOPIC);
      await setTimeout(1_000);
    }
  }
}

records = await open();
for await (const record of records ?? []) {
  if (stopped) break;
  const { eventId, order, foreign } = read(record);
  if (foreign) {
    // A real service puts an event that it should know on a dead letter topic.
    sayOnce(`skipped: ${foreign}`, `at ${record.partition}/${record.offset}`);
  } else {
    await apply(db, eventId, order);
    console.log('committed', eventId);
  }
  // Only now: were it committed first, a crash in between would lose the event.
  await record.commit();
}
// Leaves the group at once, not when the session has run out.
await consumer.close(true);
await db.end();
