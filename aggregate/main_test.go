package aggregate_test

import (
	"os"
	"testing"

	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) { os.Exit(testlog.Strict(m).Run()) }
