// DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events go run consume.go
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

const group = "billing-go"

var uuid = regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

type order struct {
	OrderID    *string `json:"orderId"`
	TotalCents *int64  `json:"totalCents"`
}

var said = map[string]bool{}

func sayOnce(what, where string) {
	if !said[what] {
		said[what] = true
		fmt.Fprintln(os.Stderr, what, where)
	}
}

func header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}

// Returns the id and the order of an event, or why the record is no event for this consumer.
func read(record *kgo.Record) (eventID string, placed order, foreign string) {
	eventID = header(record, "event-id")
	if !uuid.MatchString(eventID) {
		return "", order{}, "no event-id"
	}
	if kind := header(record, "event-type"); kind != "OrderPlaced" {
		return "", order{}, fmt.Sprintf("no handler for the type %q", kind)
	}
	if version := header(record, "event-version"); version != "1" {
		return "", order{}, fmt.Sprintf("no handler for the version %q of OrderPlaced", version)
	}
	var event struct{ Data order }
	if err := json.Unmarshal(record.Value, &event); err != nil || event.Data.OrderID == nil || event.Data.TotalCents == nil {
		return "", order{}, "no order in an OrderPlaced"
	}
	return eventID, event.Data, ""
}

// BeginFunc checks the answer to COMMIT: after an error that was ignored, Postgres answers ROLLBACK, and this returns
// pgx.ErrTxCommitRollback. A statement that may fail belongs into a savepoint, tx.Begin.
func apply(ctx context.Context, db *pgx.Conn, eventID string, placed order) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var first bool
		if err := tx.QueryRow(ctx, "select event_once($1, $2)", group, eventID).Scan(&first); err != nil || !first {
			return err
		}
		_, err := tx.Exec(ctx, "insert into invoices (order_id, total_cents) values ($1, $2)", placed.OrderID, placed.TotalCents)
		return err
	})
}

func consume(ctx context.Context, db *pgx.Conn, client *kgo.Client) error {
	// The record at work is finished after the signal.
	work := context.WithoutCancel(ctx)
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		// A topic that does not exist is among them. The client goes on by itself.
		fetches.EachError(func(topic string, _ int32, err error) { sayOnce(err.Error(), topic) })
		for _, record := range fetches.Records() {
			if ctx.Err() != nil {
				return nil
			}
			eventID, placed, foreign := read(record)
			if foreign != "" {
				// A real service puts an event that it should know on a dead letter topic.
				sayOnce("skipped: "+foreign, fmt.Sprintf("at %d/%d", record.Partition, record.Offset))
			} else {
				if err := apply(work, db, eventID, placed); err != nil {
					return err
				}
				fmt.Println("committed", eventID)
			}
			// Only now: were it committed first, a crash in between would lose the event.
			if err := client.CommitRecords(work, record); err != nil {
				return err
			}
		}
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
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
		kgo.KeepRetryableFetchErrors(),
	)
	if err != nil {
		log.Fatal(err)
	}
	err = consume(ctx, db, client)
	// Leaves the group at once, not when the session has run out.
	client.Close()
	if err != nil {
		log.Fatal(err)
	}
}
