package middleware_test

import (
	"testing"

	"github.com/millrace-go/millrace/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
