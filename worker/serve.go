package worker

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Serve serves the connections of ln with srv, as srv.Serve(ln) does, until this
// worker drains. Then it lets keep-alive clients go without losing a request:
//
//   - The next answer on each connection carries "Connection: close", also the answer
//     to a request that is being handled. On an HTTP/2 connection the next answer is
//     followed by GOAWAY.
//   - A connection is closed without an answer only if no byte of a request has come
//     for 500 ms. A connection that was idle for that long when the drain began is closed
//     at once. If half of a request or of a TLS handshake was read, the limit is 5 s.
//   - Hijacked connections, as websockets, are the program's: it watches Draining.
//
// For TLS, wrap the listener: Serve(tls.NewListener(ln, TLSConfig(cfg)), srv). HTTP/2
// then needs "h2" and "http/1.1" in cfg.NextProtos.
//
// Serve returns the error of srv.Serve. A drain alone does not end it, because Accept
// blocks: rrd ends the process when no connection is open. So log.Fatal(Serve(ln, srv))
// does not cut a client. If the program calls srv.Shutdown or srv.Close, Serve returns
// http.ErrServerClosed at once, and a program that has called Shutdown waits for its
// return. Outside rrd, Serve is srv.Serve.
//
// Serve replaces srv.Handler and srv.ConnState by its own, which call those of the
// program, so set them before. Several listeners may share one srv.
func Serve(ln net.Listener, srv *http.Server) error {
	ch, err := process()
	if ch == nil || err != nil {
		return srv.Serve(ln)
	}
	return ch.serve(ln, srv)
}

func (ch *channel) serve(ln net.Listener, srv *http.Server) error {
	ch.start()
	g := gentleOf(srv, ch.drainC)
	returned, swept := make(chan struct{}), make(chan struct{})
	go g.sweepAtDrain(returned, swept) // waited for below
	err := srv.Serve(ln)
	close(returned)
	<-swept
	return err
}

// The times of Serve. docs/operation.md, "Keep-alive".
const (
	// idleTime is how long a connection must have been idle to be closed. A client that
	// sends a request is seldom later than that behind its last one.
	idleTime = 500 * time.Millisecond
	// halfTime is the limit where something was read that is not a request yet.
	halfTime = 5 * time.Second
	// sweepEvery is how often a draining worker looks for idle connections.
	sweepEvery = 25 * time.Millisecond
)

// gentle is the handler of a server that ends gently. One of them belongs to each
// server, however many listeners it has.
type gentle struct {
	handler   http.Handler // of the program
	connState func(net.Conn, http.ConnState)
	drainC    <-chan struct{}
	conns     sync.Map // net.Conn, as the server sees it, to *served
	sweepMu   sync.Mutex

	idle, half, every time.Duration // idleTime and so on, but in a test
}

var gentleMu sync.Mutex // held while a server is changed

// gentleOf returns the gentle of srv, which it puts there the first time.
func gentleOf(srv *http.Server, drainC <-chan struct{}) *gentle {
	gentleMu.Lock()
	defer gentleMu.Unlock()
	if g, ok := srv.Handler.(*gentle); ok {
		return g
	}
	g := &gentle{handler: srv.Handler, connState: srv.ConnState, drainC: drainC,
		idle: idleTime, half: halfTime, every: sweepEvery}
	if g.handler == nil {
		g.handler = http.DefaultServeMux
	}
	srv.Handler, srv.ConnState = g, g.note
	return g
}

func (g *gentle) draining() bool {
	select {
	case <-g.drainC:
		return true
	default:
		return false
	}
}

func (g *gentle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		rw := &response{ResponseWriter: w, g: g}
		g.handler.ServeHTTP(rw, r)
		rw.begin(http.StatusOK) // of a handler that has written nothing
		return
	}
	// HTTP/2 reads the field when the head is sent, and makes it a GOAWAY.
	g.sayClose(w)
	g.handler.ServeHTTP(w, r)
	g.sayClose(w)
}

// sayClose puts the field into a head that is still to be sent.
func (g *gentle) sayClose(w http.ResponseWriter) {
	if g.draining() {
		w.Header().Set("Connection", "close")
	}
}

// served is a connection of a server.
type served struct {
	leash *leash       // nil: the Conn below is hidden by a listener of the program
	since atomic.Int64 // when it became idle, as of monotonic; 0: it is not
	base  atomic.Uint32
	// A frame of HTTP/2 may come at any time and begins no request.
	http2 atomic.Bool

	// The sweep's own.
	reads  uint32
	readAt int64 // when reads was seen first
}

// monotonic is nanoseconds since some start.
func monotonic() int64 { return int64(time.Since(processStart)) + 1 }

var processStart = time.Now()

// note is the server's ConnState.
func (g *gentle) note(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s := &served{leash: leashOf(c)}
		s.rest()
		g.conns.Store(c, s)
	case http.StateActive:
		if s, ok := g.served(c); ok {
			s.since.Store(0)
		}
	case http.StateIdle:
		if s, ok := g.served(c); ok {
			if t, ok := c.(*tls.Conn); ok && !s.http2.Load() {
				s.http2.Store(t.ConnectionState().NegotiatedProtocol == "h2")
			}
			s.rest()
		}
	case http.StateHijacked, http.StateClosed:
		g.conns.Delete(c)
	}
	if g.connState != nil {
		g.connState(c, state)
	}
}

func (g *gentle) served(c net.Conn) (*served, bool) {
	v, ok := g.conns.Load(c)
	if !ok {
		return nil, false
	}
	return v.(*served), true
}

// rest begins an idle time.
func (s *served) rest() {
	if s.leash != nil {
		s.base.Store(s.leash.reads.Load())
	}
	s.since.Store(monotonic())
}

// sweepAtDrain closes what is idle from the drain on, until Serve returns.
func (g *gentle) sweepAtDrain(returned <-chan struct{}, swept chan<- struct{}) {
	defer close(swept)
	select {
	case <-g.drainC:
	case <-returned:
		return
	}
	tick := time.NewTicker(g.every)
	defer tick.Stop()
	for {
		g.sweep(monotonic())
		select {
		case <-tick.C:
		case <-returned:
			return
		}
	}
}

func (g *gentle) sweep(now int64) {
	g.sweepMu.Lock()
	defer g.sweepMu.Unlock()
	g.conns.Range(func(c, v any) bool {
		g.endIfIdle(v.(*served), c.(net.Conn), now)
		return true
	})
}

// endIfIdle ends a connection on which nothing of a request has come for long enough.
// Preconditions: sweepMu is held.
func (g *gentle) endIfIdle(s *served, c net.Conn, now int64) {
	since := s.since.Load()
	if since == 0 {
		return
	}
	if s.leash == nil {
		// Whether something was read just now is not known. If so, the server says it
		// before the next sweep.
		if now-since >= int64(g.idle+2*g.every) {
			_ = c.Close()
		}
		return
	}
	reads := s.leash.reads.Load()
	if s.readAt == 0 || s.reads != reads {
		s.reads, s.readAt = reads, now
	}
	limit := int64(g.idle)
	if reads == s.base.Load() {
		s.readAt = since
	} else if !s.http2.Load() {
		limit = int64(g.half)
	}
	if now-s.readAt >= limit {
		s.leash.pull(reads)
	}
}
