package main

import (
	"time"
	"unicode/utf8"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// record is the printed form of a poison entry.
type record struct {
	ID       string         `json:"id"`
	Time     time.Time      `json:"time"`
	Topic    string         `json:"topic"`
	Group    string         `json:"group"`
	Handler  string         `json:"handler"`
	Lane     int32          `json:"lane"`
	Position int64          `json:"position"`
	Waits    bool           `json:"waits,omitempty"`
	Host     string         `json:"host"`
	Failure  bus.Failure    `json:"failure"`
	Message  *messageRecord `json:"message,omitempty"`
}

// messageRecord is the printed form of a message. A payload that is not text sets Base64 instead of
// Payload; a tombstone sets neither.
type messageRecord struct {
	ID          string      `json:"id"`
	Key         string      `json:"key"`
	Type        string      `json:"type,omitempty"`
	Source      string      `json:"source,omitempty"`
	Subject     string      `json:"subject,omitempty"`
	Time        time.Time   `json:"time"`
	ContentType string      `json:"contenttype,omitempty"`
	Headers     [][2]string `json:"headers,omitempty"`
	Payload     *string     `json:"payload,omitempty"`
	Base64      []byte      `json:"base64,omitempty"`
}

func recordOf(e *driver.PoisonEntry) *record {
	r := &record{
		ID: e.ID, Time: e.Time, Topic: e.Topic, Group: e.Group, Handler: e.Handler, Lane: e.Lane, Position: e.Position,
		Waits: e.Waits, Host: e.Host, Failure: e.Failure,
	}
	m := e.Message
	r.Message = &messageRecord{
		ID: m.ID, Key: m.Key, Type: m.Type, Source: m.Source, Subject: m.Subject, Time: m.Time, ContentType: m.ContentType,
	}
	for _, h := range m.Headers {
		r.Message.Headers = append(r.Message.Headers, [2]string{h.Name, h.Value})
	}
	switch {
	case m.Payload == nil:
	case utf8.Valid(m.Payload):
		text := string(m.Payload)
		r.Message.Payload = &text
	default:
		r.Message.Base64 = m.Payload
	}
	return r
}
