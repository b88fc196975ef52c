module github.com/millrace-go/millrace/adapters/sql/mysql

go 1.26.0

replace github.com/millrace-go/millrace => ../../..

require (
	github.com/go-sql-driver/mysql v1.10.1
	github.com/millrace-go/millrace v0.0.0
	go.uber.org/goleak v1.3.0
)

require filippo.io/edwards25519 v1.2.0 // indirect
