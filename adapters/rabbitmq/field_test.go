package rabbitmq

import (
	"math"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestText(t *testing.T) {
	for _, c := range []struct {
		field any
		want  string
	}{
		{nil, ""},
		{"text", "text"},
		{[]byte{0xff}, "\xff"},
		{true, "true"},
		{uint8(255), "255"},
		{int(-1), "-1"},
		{float32(0.1), "0.1"},
		{1e300, "1e+300"},
		{math.NaN(), "NaN"}, // RabbitMQ itself does not carry it
		{time.Date(2020, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)), "2020-01-02T02:04:05Z"},
		{amqp.Decimal{Scale: 0, Value: 7}, "7"},
		{amqp.Decimal{Scale: 2, Value: 5}, "0.05"},
		{amqp.Decimal{Scale: 2, Value: -5}, "-0.05"},
		{amqp.Decimal{Scale: 255, Value: math.MinInt32}, "-0." + string(slices.Repeat([]byte("0"), 245)) + "2147483648"},
		{amqp.Table{}, "{}"},
		{amqp.Table{"b": []any{}, "a": nil}, `{"a":null,"b":[]}`},
		{[]any{math.Inf(-1), float32(1e20), []byte("x"), amqp.Decimal{Scale: 1, Value: -1}}, `["-Inf",1e+20,"x",-0.1]`},
		{struct{}{}, ""}, // nothing that the client library makes
	} {
		if got := text(c.field); got != c.want {
			t.Errorf("%T %v: got %q, want %q", c.field, c.field, got, c.want)
		}
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		field any
		want  []string
	}{
		{"a", []string{"a"}},
		{[]any{}, []string{"[]"}},
		{[]any{"a", []byte("b")}, []string{"a", "b"}},
		{[]any{"a", int32(1)}, []string{`["a",1]`}},
	} {
		if got := values(c.field); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, want %q", c.field, got, c.want)
		}
	}
}
