package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/millrace-go/millrace/internal/window"
)

// cutPatience bounds how long lanes wait for the answer to where their logs were cut off.
const cutPatience = 5 * time.Second

// cut makes lanes that are about to be ours forget messages that their logs no longer have. After
// an unclean election or the loss of a disk, a log ends earlier than before, and other messages
// come to the same offsets. The new messages are not finished, whatever was committed of the former
// ones. The committed leader epoch identifies the former log. Without an answer, a lane forgets the
// messages finished beyond its position, and repeats them.
func (s *source) cut(ctx context.Context, lanes []*lane) {
	var req kadm.OffsetForLeaderEpochRequest
	for _, l := range lanes {
		if l.leaderEpoch >= 0 {
			req.Add(s.sub.Topic, l.ID, l.leaderEpoch)
		}
	}
	ends := map[int32]int64{}
	ctx, cancel := context.WithTimeout(ctx, cutPatience)
	defer cancel()
	_ = persist(ctx, func() error { // a lane without an answer repeats messages
		if len(req) == 0 {
			return nil
		}
		resp, err := s.driver.adm.OffsetForLeaderEpoch(ctx, req)
		for p, end := range resp[s.sub.Topic] {
			if end.Err != nil {
				err = end.Err
				continue
			}
			ends[p] = end.EndOffset
			delete(req[s.sub.Topic], p)
		}
		if len(req[s.sub.Topic]) == 0 {
			return nil
		}
		return err
	})
	for _, l := range lanes {
		position := l.window.Position()
		if end, ok := ends[l.ID]; ok && end >= position {
			l.window = l.window.Again(end)
		} else {
			l.window = window.New(position)
		}
	}
}
