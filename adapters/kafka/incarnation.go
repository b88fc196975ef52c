package kafka

import (
	"crypto/sha256"
	"strings"
)

// incarnation tells a topic from others that had its name before it, or have it in another cluster. It is written into each commit's metadata,
// because brokers keep positions by name: a position of a deleted topic must not hide messages of the one that was created after it. It is
// empty where the broker has no topic ids (before 2.8).
type incarnation string

const (
	// incarnationMark precedes the incarnation at the end of a commit's metadata.
	incarnationMark = "@"
	clusterDigits   = 8
)

// incarnation is that of the topic with this id. The cluster is a part of it because tools carry commits from one cluster to another, where
// the topic has another id and the position is right.
func (t *topics) incarnation(id [16]byte) incarnation {
	if id == [16]byte{} {
		return ""
	}
	cluster, _ := t.cluster.Load().(string)
	sum := sha256.Sum256([]byte(cluster))
	const digits = clusterDigits * 6 / 8 // bytes that make as many digits
	return incarnation(metadataEncoding.EncodeToString(append(sum[:digits:digits], id[:]...)))
}

// replaced says whether metadata is of another topic in this cluster that had the name of this one.
func (i incarnation) replaced(metadata string) bool {
	_, of, ok := strings.Cut(metadata, incarnationMark)
	return ok && i != "" && len(of) == len(i) && of[:clusterDigits] == string(i[:clusterDigits]) && of != string(i)
}

// tail is what follows the window in a commit's metadata: the mark of a transaction, if it is one, and the incarnation. It begins with
// commitMark if it is not empty.
func (i incarnation) tail(mark string) string {
	tail := mark
	if i != "" {
		tail += incarnationMark + string(i)
	}
	if tail == "" {
		return ""
	}
	return commitMark + tail
}
