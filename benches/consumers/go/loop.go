// Drains a topic with franz-go, one goroutine and one connection per partition, and the inbox of event-outbox.
// DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=... GROUP=... MODE=each|fetch go run loop.go
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

type counted struct {
	N int64 `json:"n"`
}

var group = os.Getenv("GROUP")

func header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}

// Applies one record in one transaction.
func each(ctx context.Context, db *pgx.Conn, record *kgo.Record) error {
	var event counted
	if err := json.Unmarshal(record.Value, &event); err != nil {
		return err
	}
	id := header(record, "event-id")
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var first bool
		if err := tx.QueryRow(ctx, "select event_once($1, $2)", group, id).Scan(&first); err != nil || !first {
			return err
		}
		_, err := tx.Exec(ctx, "insert into effects (event_id, entity, n) values ($1, $2, $3)", id, string(record.Key), event.N)
		return err
	})
}

// Applies records in one transaction.
func together(ctx context.Context, db *pgx.Conn, records []*kgo.Record) error {
	ids, keys, numbers := make([]string, 0, len(records)), make([]string, 0, len(records)), make([]int64, 0, len(records))
	for _, record := range records {
		var event counted
		if err := json.Unmarshal(record.Value, &event); err != nil {
			return err
		}
		ids, keys, numbers = append(ids, header(record, "event-id")), append(keys, string(record.Key)), append(numbers, event.N)
	}
	_, err := db.Exec(ctx, `with first as (
		insert into processed_events (consumer_group, event_id) select $1, id from unnest($2::uuid[]) id order by id
		on conflict do nothing returning event_id)
		insert into effects (event_id, entity, n)
		select given.id, given.key, given.n from unnest($2::uuid[], $3::text[], $4::int8[]) given (id, key, n) join first on first.event_id = given.id`,
		group, ids, keys, numbers)
	return err
}

func apply(ctx context.Context, db *pgx.Conn, records []*kgo.Record) error {
	if os.Getenv("MODE") != "fetch" {
		for _, record := range records {
			if err := each(ctx, db, record); err != nil {
				return err
			}
		}
		return nil
	}
	for len(records) > 0 {
		most := min(len(records), 500)
		if err := together(ctx, db, records[:most]); err != nil {
			return err
		}
		records = records[most:]
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(os.Getenv("KAFKA_BOOTSTRAP_SERVERS")),
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(os.Getenv("TOPIC")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		log.Fatal(err)
	}
	connections := map[int32]*pgx.Conn{}
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		var work sync.WaitGroup
		fetches.EachPartition(func(partition kgo.FetchTopicPartition) {
			if connections[partition.Partition] == nil {
				connections[partition.Partition], err = pgx.Connect(context.Background(), os.Getenv("DATABASE_URL"))
				if err != nil {
					log.Fatal(err)
				}
			}
			db, records := connections[partition.Partition], partition.Records
			work.Go(func() {
				if err := apply(context.Background(), db, records); err != nil {
					log.Fatal(err)
				}
			})
		})
		work.Wait()
		if err := client.CommitUncommittedOffsets(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
	client.Close()
}
