// Package all registers every driver that comes with Millrace. A service that knows its broker
// imports that driver alone, and does not compile the others.
package all

import (
	// Each registers its schemes when it is imported.
	_ "github.com/millrace-go/millrace/adapters/kafka"
	_ "github.com/millrace-go/millrace/adapters/memory"
	_ "github.com/millrace-go/millrace/adapters/rabbitmq"
	_ "github.com/millrace-go/millrace/adapters/sql/mysql"
	_ "github.com/millrace-go/millrace/adapters/sql/postgres"
	_ "github.com/millrace-go/millrace/adapters/sql/sqlite"
)
