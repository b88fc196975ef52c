package conformance_test

import (
	"testing"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/conformance"
)

func TestMemory(t *testing.T) { conformance.Run(t, conformance.URL("memory:conformance")) }
