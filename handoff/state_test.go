package handoff

import (
	"strings"
	"testing"
)

// The whole table, written the other way round: what each state hears.
func TestLegal(t *testing.T) {
	want := map[State]string{
		Starting: "READY LISTEN LEAVE PONG BYE HEALTH ASK_TICKETS",
		Serving:  "ACK REJECT AGAIN LISTEN LEAVE PONG BYE TOUCHED CLOSED HEALTH ASK_TICKETS",
		Draining: "READY ACK REJECT AGAIN LISTEN LEAVE DRAINED PONG BYE TOUCHED CLOSED HEALTH ASK_TICKETS",
		Over:     "",
	}
	if len(want) != int(numStates) {
		t.Errorf("%d states here, %d there", len(want), numStates)
	}
	for s, names := range want {
		var got []string
		for typ := range 256 {
			if Legal(s, Type(typ)) {
				got = append(got, Type(typ).String())
			}
		}
		if g := strings.Join(got, " "); g != names {
			t.Errorf("%v hears %q, want %q", s, g, names)
		}
	}
}

// What only the master says is never legal from a worker, nor what nobody says,
// in no state.
func TestNothingElseIsLegal(t *testing.T) {
	for s := range 256 {
		for typ := range 256 {
			if Legal(State(s), Type(typ)) && (typ < int(Ready) || Type(typ).String() == "UNKNOWN" || s >= int(numStates)) {
				t.Errorf("type %d is legal in state %d", typ, s)
			}
		}
	}
}

func TestStateNames(t *testing.T) {
	for s, want := range map[State]string{Starting: "starting", Serving: "serving", Draining: "draining", Over: "over"} {
		if s.String() != want {
			t.Errorf("state %d is %s, want %s", s, s, want)
		}
	}
}
