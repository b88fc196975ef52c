package kafka

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/window"
)

// lane is one ownership of a partition. Its fields are guarded by the source's lock.
type lane struct {
	bus.Lane
	window  *window.Window // nil: it is not known where it begins
	next    int64          // the next offset to be polled
	since   time.Time      // records of before are skipped, up to the first one that is not; zero: none are
	leaving bool           // it is being handed over: nothing of it is delivered any more

	leaderEpoch int32  // of the last record polled, for Kafka's own check of truncated logs (KIP-320)
	committed   int64  // -1: nothing of this partition was ever committed
	version     uint64 // of the window when it was committed

	// void: the committed position is not known, so this process commits nothing of the lane any
	// more.
	void bool

	parking parkingLog
	hearing chan struct{} // closed when what others have written there was heard; nil: nobody is at it
}

// begin has the lane begin at an offset, without a commit.
func (l *lane) begin(at int64) { l.next, l.window = at, window.New(at) }

// commit is a lane's next commit.
type commit struct {
	lane     *lane
	position int64
	epoch    int32 // the leader's
	version  uint64
	metadata string
	settled  int // how many parked messages were settled before it

	// Of commits within a transaction: the window as it will be, and the last position that the
	// transaction finishes.
	window *window.Window
	last   int64
}

// dirty says whether there is something to commit.
func (l *lane) dirty() bool {
	return !l.void && (l.parking.isSettled() || l.window.Position() != l.committed || l.window.Version() != l.version)
}

func (l *lane) commit(room int, tail string) commit {
	c := commit{lane: l, position: l.window.Position(), epoch: l.leaderEpoch, version: l.window.Version(), settled: l.parking.dropped + len(l.parking.settled)}
	c.metadata = encodeMetadata(l.window, c.position, room, tail)
	return c
}

// The metadata of a commit begins with a mark that has the format's version. The offset of the
// commit as a varint and the window's encoding follow in base64. The tail is last (see
// incarnation). The offset is repeated because some tools carry commits from one cluster to
// another. They translate the offset and copy the metadata; the window would then name the wrong
// messages as finished.
const (
	metadataMark = "mr1:"
	// metadataRoom is Kafka's default of offset.metadata.max.bytes. More makes the broker refuse
	// the partition's commit.
	metadataRoom = 4096
)

var metadataEncoding = base64.RawStdEncoding.Strict()

// encodeMetadata leaves the window out when the position says it all, or when there is no room.
func encodeMetadata(w *window.Window, position int64, room int, tail string) string {
	var base [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(base[:], uint64(position))
	limit := metadataEncoding.DecodedLen(room-len(metadataMark)-len(tail)) - n
	if limit < 32 {
		return tail
	}
	enc := w.Encode(base[:n:n], limit)
	if len(enc) == n {
		return tail
	}
	return metadataMark + metadataEncoding.EncodeToString(enc) + tail
}

// restore returns a lane's window from its group's commit. It ignores metadata that is another
// program's, damaged, or of another offset: then messages finished beyond the offset are delivered
// again.
func restore(position int64, metadata string) *window.Window {
	metadata, _, _ = strings.Cut(metadata, commitMark)
	text, ok := strings.CutPrefix(metadata, metadataMark)
	if !ok {
		return window.New(position)
	}
	enc, err := metadataEncoding.DecodeString(text)
	if err != nil {
		return window.New(position)
	}
	base, n := binary.Uvarint(enc)
	if n <= 0 || base != uint64(position) {
		return window.New(position)
	}
	w, err := window.Restore(position, enc[n:])
	if err != nil {
		return window.New(position)
	}
	return w
}
