package poison_test

import (
	"testing"

	"github.com/millrace-go/millrace/internal/leaktest"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) { leaktest.Main(testlog.Strict(m)) }
