package handoff

// State is how far the conversation with one worker has come, as the master
// sees it. docs/protocol.md, "What is legal when".
//
//	Starting --READY--> Serving --DRAIN sent--> Draining --BYE--> Over
//	    \---DRAIN sent--> Draining                  any  --BYE--> Over
type State uint8

const (
	// Starting: no READY yet.
	Starting State = iota
	// Serving: READY was said, handoffs may come.
	Serving
	// Draining: DRAIN was sent; late answers and DRAINED are still to come.
	Draining
	// Over: BYE was said; nothing is legal any more.
	Over
	numStates
)

func (s State) String() string {
	return [numStates]string{"starting", "serving", "draining", "over"}[s]
}

// legal lists, for each frame that a worker may send, the states in which it
// may. What is legal and still wrong (an answer to a handoff that is not in
// flight, a second READY, ASK_TICKETS without an offer) is for who keeps the ledger to see.
var legal = [...][numStates]bool{
	//        Starting Serving Draining Over
	Ready:   {true, false, true, false}, // Draining: it crossed our DRAIN
	Ack:     {false, true, true, false},
	Reject:  {false, true, true, false},
	Again:   {false, true, true, false},
	Listen:  {true, true, true, false},
	Leave:   {true, true, true, false},
	Drained: {false, false, true, false},
	Pong:    {true, true, true, false},
	Bye:     {true, true, true, false},
	Touched: {false, true, true, false},
	Closed:  {false, true, true, false},
	Health:  {true, true, true, false},

	AskTickets: {true, true, true, false}, // and Hello had HelloTickets
}

// Legal reports whether a worker may say t in state s.
func Legal(s State, t Type) bool {
	return int(t) < len(legal) && s < numStates && legal[t][s]
}
