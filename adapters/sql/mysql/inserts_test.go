package mysql

import (
	"database/sql"
	"fmt"
	"reflect"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// TestInsertSizes: a size that comes again takes one statement. Other sizes take few of the
// statements that are always kept.
func TestInsertSizes(t *testing.T) {
	i := &inserts{bySize: map[int]*insert{}}
	for _, step := range []struct {
		n    int
		want []int
	}{
		{1, []int{1}},
		{16, []int{16}},
		{17, []int{16, 1}},
		{100, []int{64, 32, 4}},
		{100, []int{100}}, // twice in a row
		{37, []int{32, 5}},
		{100, []int{64, 32, 4}}, // nobody has asked for the statement meanwhile
		{128, []int{128}},
		{1000, []int{256, 256, 256, 128, 64, 32, 8}},
		{1000, []int{256, 256, 256, 232}},
		{512, []int{256, 256}},
	} {
		if got := i.sizes(step.n); !reflect.DeepEqual(got, step.want) {
			t.Errorf("%d: %v, want %v", step.n, got, step.want)
		}
	}
}

// TestAppend inserts batches of all sizes and of several topics, and more sizes than are kept.
func TestAppend(t *testing.T) {
	s := testStore(t)
	want := map[int64][]string{}
	number := 0
	batch := func(n int, topics ...int64) {
		t.Helper()
		var records []sqllog.Record
		for i := range n {
			number++
			r := sqllog.Record{Topic: topics[i%len(topics)], Message: &bus.Message{ID: fmt.Sprint(number)}}
			records = append(records, r)
			want[r.Topic] = append(want[r.Topic], r.Message.ID)
		}
		if err := s.Append(t.Context(), records); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1, 2, 16, 17, 255, 256, 257, 1000} {
		batch(n, 1)
	}
	for n := range 2 * mostOften {
		for range 3 {
			batch(40+n, 2)
		}
	}
	for range 3 {
		batch(100, 2, 1, 3)
	}
	if n := len(s.inserts.often); n != mostOften {
		t.Errorf("%d statements are kept beside the usual ones, want %d", n, mostOften)
	}
	for topic, ids := range want {
		rows, err := s.db.QueryContext(t.Context(), s.dialect.SQL("SELECT id FROM {log} WHERE topic = ? ORDER BY seq"), topic)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var got []string
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			got = append(got, id)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, ids) {
			t.Errorf("topic %d: %d messages came as %v", topic, len(ids), got)
		}
		head, err := s.Head(t.Context(), topic)
		var last int64
		if err == nil {
			err = s.db.QueryRowContext(t.Context(), s.dialect.SQL("SELECT MAX(seq) FROM {log} WHERE topic = ?"), topic).Scan(&last)
		}
		if err != nil || head != last {
			t.Errorf("topic %d: the head is %d, %v, want %d", topic, head, err, last)
		}
	}
}

// testStore returns a store with tables of its own and the topics 1 to 3.
func testStore(t *testing.T) *store {
	s := &store{db: testPool(t), dialect: dialect(brokertest.Prefix(t))}
	s.init()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, text := range append(migrations[0][:2:2], "INSERT INTO {topic} (name, shards) VALUES ('a', 1), ('b', 1), ('c', 1)") {
		if _, err := s.db.ExecContext(t.Context(), s.dialect.SQL(text)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// testPool returns a pool with the library's default settings.
func testPool(t *testing.T) *sql.DB {
	c, err := driver.ParseDSN(brokertest.MySQLDSN(brokertest.URL(t, "mysql")))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	return db
}
