// DATABASE_URL=... go run insert.go
package main

import (
	"context"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
)

func placeOrder(ctx context.Context, conn *pgx.Conn, id, customer string, totalCents int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into orders (id, customer, total_cents) values ($1, $2, $3)", id, customer, totalCents)
		if err != nil {
			return err
		}
		payload := map[string]any{"orderId": id, "customer": customer, "totalCents": totalCents}
		headers := map[string]string{"correlation-id": "req-81f2"}
		_, err = tx.Exec(ctx, "select outbox_emit('order', $1, 'OrderPlaced', $2, $3)", id, payload, headers)
		return err
	})
}

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := placeOrder(ctx, conn, "o-go", "c-7", 4200); err != nil {
		log.Fatal(err)
	}
}
