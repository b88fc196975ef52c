package rabbitmq

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// values are the values of a header: a list of strings is a header that repeats, anything else is
// one value.
func values(field any) []string {
	list, ok := field.([]any)
	if !ok || len(list) == 0 {
		return []string{text(field)}
	}
	vs := make([]string, len(list))
	for i, v := range list {
		switch v := v.(type) {
		case string:
			vs[i] = v
		case []byte:
			vs[i] = string(v)
		default:
			return []string{text(field)}
		}
	}
	return vs
}

// text is the documented text of an AMQP field value. Scalars are written plainly, tables and lists
// as JSON.
func text(field any) string {
	switch v := field.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case nil:
		return ""
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case amqp.Table, []any:
		b, err := json.Marshal(tree(v))
		if err != nil {
			return "" // tree leaves nothing that JSON cannot hold
		}
		return string(b)
	default:
		return scalar(v)
	}
}

func scalar(field any) string {
	switch v := field.(type) {
	case bool:
		return strconv.FormatBool(v)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case amqp.Decimal:
		return decimal(v)
	default:
		if n, ok := integer(v); ok {
			return strconv.FormatInt(n, 10)
		}
		return ""
	}
}

func isInteger(field any) bool {
	_, ok := integer(field)
	return ok
}

func integer(field any) (int64, bool) {
	switch v := field.(type) {
	case int8:
		return int64(v), true
	case uint8:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int64:
		return v, true
	case int:
		return int64(v), true
	}
	return 0, false
}

// decimal writes 12345 at scale 2 as 123.45.
func decimal(d amqp.Decimal) string {
	digits := strconv.FormatInt(int64(d.Value), 10)
	if d.Scale == 0 {
		return digits
	}
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	scale := int(d.Scale)
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	return sign + digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
}

// tree turns a field into a value for encoding/json: numbers stay numbers, where JSON has them.
func tree(field any) any {
	switch v := field.(type) {
	case amqp.Table:
		m := make(map[string]any, len(v))
		for name, f := range v {
			m[name] = tree(f)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, f := range v {
			l[i] = tree(f)
		}
		return l
	case nil, bool, string:
		return v
	case float32:
		return floating(float64(v), text(v))
	case float64:
		return floating(v, text(v))
	case amqp.Decimal:
		return json.Number(decimal(v))
	default:
		if n, ok := integer(v); ok {
			return n
		}
		return text(v)
	}
}

func floating(v float64, text string) any {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return text
	}
	return json.Number(text)
}
