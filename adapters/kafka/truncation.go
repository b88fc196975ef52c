package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/millrace-go/millrace/internal/window"
)

// cutPatience bounds how long lanes wait for the answer to where their logs were cut off.
const cutPatience = 5 * time.Second

// cut takes from lanes that are about to be ours what they know of messages that their logs have no more. After an unclean election, or with
// a disk that was lost, a log ends earlier than it did, and other messages come to the same offsets: they are not finished, whatever was
// committed of those that were there before. The committed leader epoch says which log it was. Where no answer comes, a lane forgets what
// was finished beyond its position, and repeats it.
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
	_ = persist(ctx, func() error { // what is missing is repeated
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
