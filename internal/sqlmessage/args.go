package sqlmessage

import "github.com/millrace-go/millrace/bus"

// Columns are the last columns of every table with messages, in the order of [AppendArgs].
const Columns = "type, source, subject, content_type, headers, payload"

// AppendArgs appends the values of [Columns] for m: NULL where m has no headers or no payload.
func AppendArgs(args []any, m *bus.Message) []any {
	var headers, payload any
	if text, ok := EncodeHeaders(m); ok {
		headers = text
	}
	if m.Payload != nil {
		payload = m.Payload
	}
	return append(args, m.Type, m.Source, m.Subject, m.ContentType, headers, payload)
}
