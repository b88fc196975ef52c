package outbox_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/outbox"
)

func TestSchema(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL, outbox.SQLite} {
		text, err := outbox.Schema(d, outbox.Config{Prefix: "shop_"})
		if err != nil || !strings.Contains(text, "shop_outbox") || !strings.Contains(text, "version 1") || strings.ContainsAny(text, "{}") {
			t.Errorf("%v: %v\n%s", d, err, text)
		}
	}
}

func ExampleSchema() {
	text, err := outbox.Schema(outbox.Postgres, outbox.Config{Schema: "shop"})
	fmt.Println(text[:41], err)
	// Output: -- Millrace outbox on postgres: version 1 <nil>
}
