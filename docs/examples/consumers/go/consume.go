// DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events go run consume.go
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

const group = "billing-go"

type event struct {
	Data struct {
		OrderID    string `json:"orderId"`
		TotalCents int64  `json:"totalCents"`
	} `json:"data"`
}

func apply(ctx context.Context, db *pgx.Conn, eventID string, record *kgo.Record) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var first bool
		if err := tx.QueryRow(ctx, "select event_once($1, $2)", group, eventID).Scan(&first); err != nil || !first {
			return err
		}
		var placed event
		if err := json.Unmarshal(record.Value, &placed); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "insert into invoices (order_id, total_cents) values ($1, $2)",
			placed.Data.OrderID, placed.Data.TotalCents)
		return err
	})
}

func header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}

func consume(ctx context.Context, db *pgx.Conn, client *kgo.Client) error {
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			eventID := header(record, "event-id")
			if err := apply(ctx, db, eventID, record); err != nil {
				return err
			}
			fmt.Println("committed", eventID)
			// Only now: were it committed first, a crash in between would lose the event.
			if err := client.CommitRecords(ctx, record); err != nil {
				return err
			}
		}
	}
}

func main() {
	ctx := context.Background()
	db, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(os.Getenv("KAFKA_BOOTSTRAP_SERVERS")),
		kgo.ConsumerGroup(group),
		// How soon others take over from a consumer that was killed.
		kgo.SessionTimeout(10*time.Second),
		kgo.ConsumeTopics(os.Getenv("TOPIC")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(consume(ctx, db, client))
}
