// Package brokertest gives tests the real brokers in the environment, and places of their own in
// the databases. A test that uses a database imports its driver: "pgx" is in pgx/v5/stdlib, "mysql"
// in go-sql-driver/mysql.
package brokertest

import (
	"os"
	"strings"
	"testing"
)

// Variable returns the name of the environment variable with a broker's URL.
func Variable(broker string) string { return "MILLRACE_" + strings.ToUpper(broker) + "_URL" }

// URL returns the URL of a broker: kafka, rabbitmq, postgres or mysql. Without a URL, and with
// -short, it skips the test. In the full test run, which sets MILLRACE_REQUIRE_BROKERS, a missing
// URL fails the test.
func URL(tb testing.TB, broker string) string {
	tb.Helper()
	return Setting(tb, Variable(broker))
}

// Setting returns a variable that scripts/brokers sets, by the same rules as [URL].
func Setting(tb testing.TB, name string) string {
	tb.Helper()
	value := os.Getenv(name)
	switch {
	case testing.Short():
		tb.Skip("needs a broker")
	case value == "" && os.Getenv("MILLRACE_REQUIRE_BROKERS") == "1":
		tb.Fatalf("%s is not set", name)
	case value == "":
		tb.Skipf("%s is not set: run `make brokers` and `. .brokers/env`", name)
	}
	return value
}

// With adds parameters, such as "lease=1s", to a URL.
func With(url string, params ...string) string {
	for _, p := range params {
		sep := "?"
		if strings.Contains(url, "?") {
			sep = "&"
		}
		url += sep + p
	}
	return url
}
