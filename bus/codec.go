package bus

import (
	"encoding/json"
	"fmt"
	"mime"
	"strings"
)

// Codec turns events into payloads and back. It must be safe for concurrent use.
type Codec interface {
	// ContentType returns the media type that the codec writes. Received messages choose their
	// codec by it.
	ContentType() string
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

// JSON is the built-in codec, based on package encoding/json. It also decodes media types that end
// in +json.
var JSON Codec = jsonCodec{}

type jsonCodec struct{}

func (jsonCodec) ContentType() string                { return "application/json" }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// pickCodec chooses by content type; a message without one is decoded by the first codec.
func pickCodec(codecs []Codec, contentType string) (Codec, error) {
	if contentType == "" || contentType == codecs[0].ContentType() {
		return codecs[0], nil
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("content type %q: %w", contentType, err)
	}
	if strings.HasSuffix(media, "+json") {
		media = JSON.ContentType()
	}
	for _, c := range codecs {
		if c.ContentType() == media {
			return c, nil
		}
	}
	return nil, fmt.Errorf("content type %q: no codec for it; see bus.WithCodecs", contentType)
}
