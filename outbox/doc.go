// Package outbox publishes inside the user's database transaction, and handles messages exactly
// once inside one.
//
// Services lose or double events in two places: "saved but not published" and "handled twice". The
// outbox ends the first: a message is a row that commits or rolls back with its cause, and a
// [Relay] takes it to the broker. The inbox ends the second: [Once] records a message's id in the
// transaction of its effect.
//
//	o, err := outbox.New(outbox.Postgres, outbox.Config{})
//	err = o.Migrate(ctx, db)                                      // or apply outbox.Schema
//
//	tx, err := db.BeginTx(ctx, nil)                               // *sql.Tx; for pgx see package pgxoutbox
//	_, err = tx.ExecContext(ctx, "INSERT INTO orders …")
//	err = o.Publish(ctx, tx, "orders", OrderPlaced{ID: 7}, bus.WithKey("customer-3"))
//	err = tx.Commit()
//
//	relay, err := o.NewRelay(db, b, outbox.RelayConfig{})         // in the service, or alone: millrace relay
//	err = relay.Run(ctx)
//
//	r.Handle("orders", outbox.Once(o, outbox.SQL(db, nil),
//		func(ctx context.Context, tx *sql.Tx, e OrderPlaced) error {
//			_, err := tx.ExecContext(ctx, "UPDATE accounts …")     // once, with the events emitted here
//			return err
//		}))
//
// If the bus itself is in the database of these transactions, [OnceInBus] needs none of this:
// effect, outputs and settlement are one transaction.
//
// # What holds
//
//   - A message of a transaction that rolled back is never seen.
//   - A committed message is published at least once. Repeats have its id. They come from
//     killed relays, and from calls to the broker with an unknown outcome.
//   - Messages of one topic and key come in the order in which they were written, if their
//     writers run one after the other. A lock on the thing that the key names does this; most
//     services take it anyway.
//   - A message that fails makes its key wait and nothing else.
//   - A message that the broker refuses for good goes to the poison store of the bus, group
//     [PoisonGroup], and its key goes on.
//
// The tables are outbox, outbox_relay, outbox_bucket, outbox_meta and inbox, behind a prefix; on
// PostgreSQL there are also a sequence and a function.
package outbox
