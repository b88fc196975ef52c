package kafka

import (
	"crypto/sha256"
	"strings"
)

// incarnation tells a topic from earlier topics of its name, and from topics of its name in other
// clusters. It is written into each commit's metadata, because brokers keep positions by name. A
// position of a deleted topic must not hide messages of its successor. It is empty where the broker
// has no topic ids (before 2.8).
type incarnation string

const (
	// incarnationMark precedes the incarnation at the end of a commit's metadata.
	incarnationMark = "@"
	clusterDigits   = 8
)

// incarnation returns the incarnation of the topic with this id. The cluster is a part of it,
// because tools carry commits from one cluster to another. There the topic has another id, and the
// position is right.
func (t *topics) incarnation(id [16]byte) incarnation {
	if id == [16]byte{} {
		return ""
	}
	cluster, _ := t.cluster.Load().(string)
	sum := sha256.Sum256([]byte(cluster))
	const digits = clusterDigits * 6 / 8 // bytes that make as many digits
	return incarnation(metadataEncoding.EncodeToString(append(sum[:digits:digits], id[:]...)))
}

// replaced says whether metadata is of another topic in this cluster that had this topic's name.
func (i incarnation) replaced(metadata string) bool {
	_, of, ok := strings.Cut(metadata, incarnationMark)
	return ok && i != "" && len(of) == len(i) && of[:clusterDigits] == string(i[:clusterDigits]) && of != string(i)
}

// tail is the part behind the window in a commit's metadata: the mark of a transaction, if the
// commit is one, and the incarnation. It begins with commitMark if it is not empty.
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
