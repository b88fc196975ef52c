package rabbitmq

import (
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/millrace-go/millrace/bus/driver"
)

// slots is a constant of the protocol between publishers and groups. A message is published with
// the routing key slot(key) in decimal, and slot s of a group is bound to its lane s % lanes. So
// publishers need not know how many lanes a group has.
const slots = 64

// slot is the 32-bit FNV-1a hash of a key, modulo slots.
func slot(key string) int {
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h % slots)
}

// routingKeys are the slots in decimal.
var routingKeys = func() (keys [slots]string) {
	for i := range keys {
		keys[i] = strconv.Itoa(i)
	}
	return keys
}()

// slotOf reads a routing key back. ok is false for a foreign publisher's routing key.
func slotOf(routingKey string) (s int, ok bool) {
	s, err := strconv.Atoi(routingKey)
	return s, err == nil && s >= 0 && s < slots && routingKey == routingKeys[s]
}

// The names of the exchanges and queues. Topics and groups cannot hold a colon, so no two names can
// meet, whatever topics and groups are called. With a dot, group "b.c" of topic "a" would share its
// queues with group "c" of topic "a.b". No group's name is empty, so a double colon marks the
// topic's own names. The topic's exchange has the topic's name, so that other software finds it.

func unroutedName(topic string) string { return topic + "::unrouted" }
func groupsName(topic string) string   { return topic + "::groups" }
func lockName(name string) string      { return name + "::lock" }
func poisonName(group string) string   { return group + ":poison" }

// groupName is the name of the group's exchange, and the prefix of its other names. AMQP names have
// at most 255 bytes.
func groupName(topic, group string) string {
	name := topic + ":" + group
	if len(name) <= 230 {
		return name
	}
	return fmt.Sprintf("%.160s:%x", name, sha256.Sum256([]byte(name)))
}

func laneName(group string, lane int) string   { return group + ":" + strconv.Itoa(lane) }
func earlyName(group string, lane int) string  { return laneName(group, lane) + ":early" }
func parkedName(group string, lane int) string { return laneName(group, lane) + ":parked" }
func membersName(group string) string          { return group + ":members" }
func readyName(group string) string            { return group + ":ready" }
func movedName(group string) string            { return group + ":moved" }
func latestName(group string) string           { return group + ":latest" }

// lanesName is the group's alternate exchange. It names the number of lanes: see groupLanes.
func lanesName(group string, lanes int) string { return group + lanesMark + strconv.Itoa(lanes) }

const lanesMark = ":lanes="

// checkNames says whether topic and group can be named at all.
func checkNames(topic, group string) error {
	if err := driver.CheckName("topic", topic); err != nil {
		return err
	}
	return driver.CheckName("group", group)
}
