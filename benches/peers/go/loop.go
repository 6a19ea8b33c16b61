// Polls the outbox as a good engineer would write it: a batch of up to 1,000 events in one transaction, sent together with franz-go, marked
// with one statement. One instance keeps the order of an entity.
// DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=... go run loop.go
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	most  = 1000
	pause = 50 * time.Millisecond
)

type event struct {
	ID      int64
	Entity  string
	Payload []byte
}

// Publishes one batch, and returns the number of its events.
func batch(ctx context.Context, db *pgx.Conn, client *kgo.Client, topic string) (int, error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback(ctx)
	rows, err := tx.Query(ctx, `select id, entity_id, payload::text from event_outbox
		where status = 'PENDING' order by id limit $1 for update skip locked`, most)
	if err != nil {
		return 0, err
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	if err != nil || len(events) == 0 {
		return 0, err
	}
	records, ids := make([]*kgo.Record, len(events)), make([]int64, len(events))
	for i, event := range events {
		records[i], ids[i] = &kgo.Record{Topic: topic, Key: []byte(event.Entity), Value: event.Payload}, event.ID
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, "update event_outbox set status = 'PUBLISHED', published_at = now() where id = any($1)", ids); err != nil {
		return 0, err
	}
	return len(events), tx.Commit(ctx)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(os.Getenv("KAFKA_BOOTSTRAP_SERVERS")),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()),
		kgo.ProducerLinger(0),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	db, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	// The claim reads a partial index that a loop of one's own would have. A plan that was made for an empty table would scan it.
	if _, err := db.Exec(ctx, `set enable_seqscan = off`); err != nil {
		log.Fatal(err)
	}
	for ctx.Err() == nil {
		published, err := batch(ctx, db, client, os.Getenv("TOPIC"))
		if err != nil && ctx.Err() == nil {
			log.Fatal(err)
		}
		if published == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}
