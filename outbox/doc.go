// Package outbox publishes inside the user's database transaction, and handles messages exactly once inside one.
//
// "Saved but not published" and "handled twice" are the two places where services lose or double events. The outbox ends the
// first: a message is a row that commits or rolls back with what it is about, and a [Relay] takes it to the broker. The inbox
// ends the second: [Once] records a message's id in the transaction of its effect.
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
//			_, err := tx.ExecContext(ctx, "UPDATE accounts …")     // once, with what is emitted here
//			return err
//		}))
//
// Where the bus itself is in the database of these transactions, [OnceInBus] needs none of this: effect, outputs and settlement are
// one transaction.
//
// # What holds
//
// A message of a transaction that rolled back is never seen. One that was committed is published at least once; repeats have
// its id, and come from relays that were killed, and from calls to the broker of which the outcome was not known. Messages of
// one topic and key come in the order in which they were written, if whoever writes them does so one after the other: by a
// lock on the thing that the key names, which most services take anyway. A message that fails makes its key wait and
// nothing else. What the broker refuses for good goes to the poison store of the bus, group [PoisonGroup], and its key goes on.
//
// The tables are outbox, outbox_relay, outbox_bucket, outbox_meta and inbox, behind a prefix; on PostgreSQL there are also a
// sequence and a function.
package outbox
