package dispatcher

import (
	"io"
	"syscall"
	"time"

	"rrd/handoff"
)

// link is one worker as the loop sees it.
//
//	added --READY--> serving --late, full--> blocked --answer, writable--> serving
//	any --drain--> draining      any --violation, BYE, EPIPE--> gone      remove ends all
type link struct {
	id       uint64
	slot     int
	idx      workerIdx
	token    uint64
	ch       handoff.Channel
	traits   handoff.Traits
	part     partSender // nil: the channel takes a message whole or not at all
	hold     holder     // nil: the channel takes handoffs whenever it has room
	state    handoff.State
	rights   *Rights
	hidden   []ListenerConfig // listeners it is not given
	stats    *SlotStats
	handoffs uint64   // sent on this channel
	batch    []connID // added to the channel, not flushed
	unsent   []parcel // frames that found the channel full

	ready bool // READY was said
	spoke bool
	late  bool // owes an answer for longer than BusyAfter
	alive bool // has said something since it became late
	full  bool // the channel is full: waits to be writable
	gone  bool // nothing more is sent or judged; Remove ends it
	hung  bool // reported

	drained  bool // reported
	replaced bool // see replaced.go

	acks, closed uint64   // of this process
	joined       []uint32 // the listeners it has, by wire, as often as it asked
	listens      int      // LISTENs not left again
	joinedAt     []uint64 // by listenerID: handoffs when LISTENING was said last
	pings        uint64
	settleAt     int64   // ready then, also without its predecessor's listeners
	releaseAt    int64   // what it has not asked for is not held for its slot any more; 0: nothing is
	againAt      []int64 // by listenerID: when AGAIN was honoured last
	pause        int64   // after its next reject, where it says no AGAIN
	lateSince    int64
	pinged       int64  // when the PING was sent whose PONG is owed; 0: none is
	heard        int64  // when it said something last
	touches      bool   // it says TOUCHED
	offered      uint16 // flags of its HELLO
	tickets      bool   // it follows the ticket keys
	reader       int    // the process that said READY; 0: not known
	unhealthy    bool   // its program's own check fails

	toldUnhealthy bool  // what Hooks.Health was told last
	healthAt      int64 // and when it may be told again

	recalling recalling
	removal   *removal // it is dead; nil: it lives, as far as is known
}

// parcel is a frame that waits for room. The descriptor of a shared listener is lent when
// it is sent: so a worker that reads nothing takes none of the master's.
type parcel struct{ frame handoff.Frame }

// Limits on what one worker may say (semantics of the protocol, docs/protocol.md).
const (
	messagesPerTurn = 64
	// allMessages is more than a channel's buffer holds (about 280 messages of a
	// frame at the default of 208 KiB): who has read so many has read all that was
	// said before.
	allMessages = 1024
	againEvery  = int64(5 * time.Millisecond)
)

// joinedAfter is how many handoffs there were when the worker was told last that it has
// a listener.
func (k *link) joinedAfter(id listenerID) uint64 {
	if int(id) < len(k.joinedAt) {
		return k.joinedAt[id]
	}
	return 0
}

// active is how many connections the worker has, as far as it tells.
func (k *link) active() int64 {
	if k.traits.NoClosed {
		return 0
	}
	return int64(k.acks) - int64(k.closed)
}

// review blocks or unblocks a worker in the table according to its state.
func (l *loop) review(k *link) {
	if k.ready && k.state == handoff.Serving && !k.late && !k.full && !k.gone && !k.unhealthy && !k.recalling.under && !l.atLimit(k) && !l.isSettling(k) {
		l.table.unblock(k.idx)
	} else {
		l.table.block(k.idx)
	}
	if len(l.replaced) > 0 {
		l.reviewReplaced(k.slot)
	}
	if l.cfg.Policy == SchedReuseport {
		l.reviewSlots()
	}
}

func (l *loop) add(w Worker) error {
	k := &link{id: w.ID, slot: w.Slot, ch: w.Channel, traits: w.Channel.Traits(), rights: w.Rights, hidden: w.Hidden, stats: l.slot(w.Slot)}
	k.part, _ = w.Channel.(partSender)
	k.hold, _ = w.Channel.(holder)
	idx := l.table.addWorker()
	k.idx = idx
	k.token = l.token(int(idx), tokenIsLink)
	if err := l.poll.add(k.ch.Num(), k.token, true, false); err != nil {
		l.table.removeWorker(idx)
		return err
	}
	if int(idx) == len(l.links) {
		l.links = append(l.links, nil)
	}
	l.links[idx] = k
	l.byID[w.ID] = k
	if l.cfg.MaxActive > 0 {
		l.limit(k)
	}
	if s, ok := k.ch.(sender); ok {
		if err := s.WatchSender(); err != nil {
			l.fatal("watch the sender", err)
		}
	}
	hello := handoff.Frame{Type: handoff.Hello, Arg: handoff.ProtocolVersion,
		Seq: uint64(l.cfg.DrainTimeout / time.Millisecond)}
	if l.cfg.RescueLimit > 0 {
		hello.Flags |= handoff.HelloTouches
	}
	if l.cfg.MaxActive > 0 {
		hello.Flags |= handoff.HelloCloses
	}
	if l.cfg.TicketRotate > 0 {
		hello.Flags |= handoff.HelloTickets
	}
	k.offered = hello.Flags
	l.say(k, hello, handoff.FD{})
	return nil
}

func (l *loop) slot(slot int) *SlotStats {
	for len(l.slotStats) <= slot {
		l.slotStats = append(l.slotStats, nil)
	}
	if l.slotStats[slot] == nil {
		l.slotStats[slot] = &SlotStats{Slot: slot}
	}
	return l.slotStats[slot]
}

// say sends a frame that is not a handoff, now or when the channel has room.
// share stays the caller's.
func (l *loop) say(k *link, f handoff.Frame, share handoff.FD) {
	if k.gone {
		return
	}
	short := false
	if len(k.unsent) == 0 {
		err := k.ch.Send(&f, share)
		if err == nil {
			if k.part != nil && k.part.Unsent() {
				l.setFull(k, true)
			}
			return
		}
		if !canRetry(err) {
			l.cannotSend(k, err, 0)
			return
		}
		short = !isAgain(err)
	}
	k.unsent = append(k.unsent, parcel{f})
	l.setFull(k, true)
	if short {
		l.retryLater(k)
	}
}

// retryLater has k's unsent frames tried again after a pause: the channel may be
// written to, it is the kernel that is short.
func (l *loop) retryLater(k *link) {
	l.refsUntil = l.now + refsPause
	l.retries = append(l.retries, k)
	l.watchLink(k, false)
}

func (l *loop) dueRetries() {
	due := l.retries
	l.retries = nil
	for _, k := range due {
		if l.links[k.idx] == k && !k.gone && k.full {
			l.watchLink(k, true)
			l.writable(k)
		}
	}
}

// writable sends what waits for room.
func (l *loop) writable(k *link) {
	if k.held() {
		l.watchLink(k, false) // what is read next ends it
		return
	}
	if k.part != nil && k.part.Unsent() {
		if err := k.ch.Flush(); err != nil {
			switch {
			case !canRetry(err):
				l.cannotSend(k, err, 0)
			case !isAgain(err):
				l.retryLater(k)
			}
			return
		}
	}
	l.sendUnsent(k)
	if len(k.unsent) == 0 {
		l.setFull(k, false)
	}
}

func (l *loop) sendUnsent(k *link) {
	for len(k.unsent) > 0 {
		f := &k.unsent[0].frame
		if err := k.ch.Send(f, l.lendAgain(k, f)); err != nil {
			switch {
			case !canRetry(err):
				l.cannotSend(k, err, 0)
			case !isAgain(err):
				l.retryLater(k)
			}
			return
		}
		k.unsent = k.unsent[1:]
	}
	k.unsent = nil
}

func (l *loop) setFull(k *link, full bool) {
	if k.full == full {
		return
	}
	k.full = full
	l.watchLink(k, full && !k.held())
	l.review(k)
}

// held says that the channel, though it has room, takes nothing before more was
// read from it.
func (k *link) held() bool { return k.hold != nil && k.hold.Held() }

func (l *loop) watchLink(k *link, write bool) {
	if err := l.poll.set(k.ch.Num(), k.token, true, write); err != nil {
		l.fatal("poll channel", err)
	}
}

func canRetry(err error) bool {
	switch err { //nolint:errorlint // the channel's errors are bare errnos
	case syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.ETOOMANYREFS, syscall.EINTR:
		return true
	}
	return false
}

// refsPause is how long nothing is sent after ETOOMANYREFS: too many descriptors
// of this user are under way (unix(7)). An answer ends it early.
const refsPause = int64(10 * time.Millisecond)

// cannotSend deals with a send that failed for n handoffs.
func (l *loop) cannotSend(k *link, err error, n int) {
	errno, _ := err.(syscall.Errno) //nolint:errorlint // as above
	fail := FailOther
	switch errno {
	case syscall.EAGAIN:
		fail = FailWouldBlock
		l.setFull(k, true)
	case syscall.ETOOMANYREFS, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR:
		fail = FailTooManyRefs
		l.refsUntil = l.now + refsPause
	case syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN:
		// The worker has shut its end down. Its death alone would not show here:
		// the duplicate of its end is open.
		fail = FailPeerClosed
		if k.traits.HangsUp {
			// What it said before is still to be read, and then the end.
			k.state = handoff.Draining
			l.review(k)
			break
		}
		l.part(k, "channel closed")
	default:
		l.broke(k, "send: "+err.Error())
	}
	k.stats.Failures[fail] += uint64(n)
}

// silence stops listening to a worker that is gone, so that its hang-up does
// not wake the loop again and again.
func (l *loop) silence(k *link) {
	if k.gone {
		return
	}
	k.gone = true
	_ = l.poll.remove(k.ch.Num())
	l.review(k)
}

// broke ends the conversation with a worker and has it killed. What it has not
// answered stays held until it is dead: it may still serve it.
func (l *loop) broke(k *link, reason string) {
	if k.gone {
		return
	}
	k.stats.ProtocolErrors++
	l.part(k, reason)
}

// part leaves a worker that has to be killed. What it has not read goes to
// others at once.
func (l *loop) part(k *link, reason string) {
	if k.gone {
		return
	}
	l.silence(k)
	l.recall(k, RedispatchWorkerExit, false)
	if hook := l.cfg.Hooks.Broke; hook != nil {
		id := k.id
		l.event(func() { hook(id, reason) })
	}
}

func (l *loop) drain(worker uint64) {
	k := l.byID[worker]
	if k == nil || k.gone || k.state == handoff.Draining || k.state == handoff.Over {
		return
	}
	k.state = handoff.Draining
	l.review(k)
	l.say(k, handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	if !k.ready && !k.drained && !k.traits.HangsUp && (!k.spoke || l.cfg.Policy == SchedRR) {
		// It was given no connection and gets none any more, whatever it may say yet. One
		// that accepts by itself may have some before its READY is read: it says so itself.
		// One that hangs up is told to leave, and does.
		k.drained = true
		l.tell(k, l.cfg.Hooks.Drained)
	}
}

// maxDeaths: the third worker that dies having read a connection was its last.
const maxDeaths = 3

// sayAgain repeats a recalled frame. The ticket keys may be others by now.
func (l *loop) sayAgain(k *link, f handoff.Frame) {
	if f.Type == handoff.Tickets {
		if l.tickets.serial > 0 {
			l.sayTickets(k)
		}
		return
	}
	share := l.lendAgain(k, &f)
	l.say(k, f, share)
}

// lendAgain returns the descriptor of f, which was lost with its message or was not sent
// yet, if f has one. If the socket is gone by now, f becomes a refusal.
func (l *loop) lendAgain(k *link, f *handoff.Frame) handoff.FD {
	if f.Type != handoff.Listening || f.Flags&handoff.ListeningShared == 0 {
		return handoff.FD{}
	}
	var share handoff.FD
	if ln := l.byWire[f.Listener]; ln != nil {
		share = ln.lendTo(k.slot)
	}
	if !share.Valid() {
		*f = handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Arg: uint32(syscall.ECANCELED), Payload: []byte("the listener was closed")}
	}
	return share
}

// flyingConn finds the connection in flight to k under seq.
func (l *loop) flyingConn(k *link, seq uint64) (connID, bool) {
	c := seq & (1<<connBits - 1)
	if seq == 0 || c >= uint64(len(l.socks)) || l.socks[c].seq != seq {
		return none, false
	}
	e := &l.table.conns[c]
	if e.state != connInFlight || e.worker != k.idx {
		return none, false
	}
	return connID(c), true
}

// lastAnswers reads what a dead worker still said. Only what it says of connections
// counts now, and what is not understood is stepped over: an ack behind it means that a
// byte may have been served. It begins with what is left of the message that
// broke the protocol, and ends also if a stranger who holds the worker's end
// goes on talking.
func (l *loop) lastAnswers(k *link) {
	for range allMessages {
		for {
			more, err := k.ch.Next(&l.frame)
			if err != nil {
				continue // what follows the offence may still be there
			}
			if !more {
				break
			}
			switch l.frame.Type {
			case handoff.Ack:
				if c, ok := l.flyingConn(k, l.frame.Seq); ok {
					l.acked(k, c)
				}
			case handoff.Reject: // the program has not had it: no death of that connection
				if c, ok := l.flyingConn(k, l.frame.Seq); ok {
					k.stats.Rejects[rejectReason(&l.frame)]++
					l.takeBack(c, RedispatchRejected)
				}
			case handoff.Touched: // what only it knows: its descriptor may be elsewhere
				l.touched(k, l.frame.Seq)
			case handoff.Closed:
				k.closed += min(uint64(l.frame.Arg), k.acks-k.closed)
			}
		}
		err := k.ch.Receive()
		if err == io.EOF || isAgain(err) { //nolint:errorlint // Receive returns it bare
			return
		}
		if errno, ok := err.(syscall.Errno); ok && errno != syscall.ECONNRESET { //nolint:errorlint // as above
			return
		}
	}
}

func isAgain(err error) bool { return err == syscall.EAGAIN } //nolint:errorlint // bare

// holder is a channel that may have to wait for what the worker says before it
// takes another handoff.
type holder interface{ Held() bool }

// partSender is a channel that may have taken a message in part, as a stream
// does: Flush sends the rest when there is room.
type partSender interface{ Unsent() bool }

// sender is a channel that can tell which process speaks on it.
type sender interface {
	WatchSender() error
	IgnoreSender() error
	Sender() int
}

// noteReader tells which process said READY.
func (l *loop) noteReader(k *link) {
	s, ok := k.ch.(sender)
	if !ok {
		return
	}
	pid := s.Sender()
	k.reader = pid
	if err := s.IgnoreSender(); err != nil {
		l.fatal("ignore the sender", err)
	}
	if hook := l.cfg.Hooks.Reader; hook != nil && pid > 0 {
		id := k.id
		l.event(func() { hook(id, pid) })
	}
}

// atLimit says whether a worker has as many connections as it may.
func (l *loop) atLimit(k *link) bool {
	return l.cfg.MaxActive > 0 && k.active() >= int64(l.cfg.MaxActive)
}

// limit adapts what a worker may be offered to what it has.
func (l *loop) limit(k *link) {
	l.table.setWindow(k.idx, max(l.cfg.MaxActive-int(k.active()), 1))
	l.review(k)
}

// disown: the process that was started is dead, the one that reads the channel
// is not. It is given nothing more; what it has not read goes to others.
func (l *loop) disown(worker uint64) {
	k := l.byID[worker]
	if k == nil || k.gone {
		return
	}
	l.recall(k, RedispatchWorkerExit, true)
	l.drain(worker)
}

// fatal logs what should not be possible, at most once a second.
func (l *loop) fatal(what string, err error) {
	if !l.reports.due(&l.reports.fatalAt, l.now) {
		l.reports.fatals++
		return
	}
	log, left := l.cfg.Log, l.reports.fatals
	l.reports.fatals = 0
	l.event(func() {
		log.Error().Str("event", "dispatcher.error").Str("doing", what).Err(err).Int("left_out", left).Msg("unexpected error")
	})
}
