module github.com/millrace-go/millrace/middleware/jsonschema

go 1.26.0

replace github.com/millrace-go/millrace => ../..

require (
	github.com/millrace-go/millrace v0.0.0
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	golang.org/x/text v0.41.0
)
