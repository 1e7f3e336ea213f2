//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// The history crosses an upgrade in place: its newest records, in their order, as they were.
func TestEventsCross(t *testing.T) {
	cross := func(before *eventHub) []json.RawMessage {
		t.Helper()
		text, err := (&savedMaster{Events: before.saved(), Dispatcher: &dispatcher.State{}, Pool: &pool.SavedState{}}).encode()
		if err != nil {
			t.Fatal(err)
		}
		s, err := decodeState(text)
		if err != nil {
			t.Fatal(err)
		}
		m := &master{ctl: newControls(newLogGate(zerolog.InfoLevel, nil))}
		m.restoreCounts(s)
		return m.Events().last(keptEvents)
	}
	var before eventHub
	if after := cross(&before); len(after) != 0 {
		t.Errorf("%q", after) // nothing to save; or an image that did not know of them
	}
	for i := range keptEvents + 44 {
		before.publish(fmt.Appendf(nil, `{"event":"e","n":%d}`+"\n", i))
	}
	after := cross(&before)
	if len(after) != keptEvents || string(after[0]) != `{"event":"e","n":44}` || string(after[keptEvents-1]) != `{"event":"e","n":299}` {
		t.Fatalf("%d records: %s", len(after), after)
	}
	const long = savedEvents / 4
	for i := range 6 {
		before.publish(fmt.Appendf(nil, `{"n":%d,"s":"%s"}`, i, strings.Repeat("x", long-20)))
	}
	if after := cross(&before); len(after) < 4 || !strings.HasPrefix(string(after[len(after)-4]), `{"n":2,`) || size(after) > savedEvents {
		t.Errorf("%d records of %d bytes", len(after), size(after))
	}
}

func size(records []json.RawMessage) (n int) {
	for _, r := range records {
		n += len(r)
	}
	return n
}
