package aggregate

import (
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/only"
)

var engine = bus.Engine(only.Module{})
