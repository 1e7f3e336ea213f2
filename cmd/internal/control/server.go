//go:build unix

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Peer is who is at the other end, as the kernel says.
type Peer struct {
	UID, GID int
	PID      int // 0: this system does not tell
}

// A Handler does what requests ask for.
type Handler interface {
	// Handle works off one request and returns its result, or an error that may
	// be an *Error (else its code is CodeFailed). emit sends an event before that
	// and may be called by several goroutines, but not after Handle has returned;
	// its error says that the client is gone. ctx ends when the client is gone or
	// the server ends: what Handle has begun goes on, only waiting for it ends.
	Handle(ctx context.Context, p Peer, r Request, emit func(event any) error) (result any, err error)
}

// ServerConfig is what a Server needs. Only Handler is required. The hooks are
// called by the goroutines of connections.
type ServerConfig struct {
	Handler Handler
	// Handled tells of every request; cmd is empty for a line that is none.
	Handled func(p Peer, cmd string, err error)
	// Denied tells of a connection that was turned away; err says why.
	Denied func(p Peer, err error)
}

// Server answers the clients of one Listener.
type Server struct {
	cfg     ServerConfig
	resumed *client        // to be answered first; nil: nobody
	clients sync.WaitGroup // one for each connection
	count   atomic.Int32
	idle    time.Duration // MaxIdle
}

// NewServer returns a Server; it does nothing before Serve.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg, idle: MaxIdle} }

const (
	// turnedAwayPause and wrongPause bound what a client can make the server do
	// that is turned away at once, or writes lines that are no requests.
	turnedAwayPause = 5 * time.Millisecond
	wrongPause      = 10 * time.Millisecond
	// shortWrite is for the line to a client that is turned away, for which the
	// others wait.
	shortWrite = 100 * time.Millisecond
	// closeTimeout is how long the last replies may take when the server ends.
	closeTimeout = time.Second
	// acceptPause is the pause after an accept that failed: out of descriptors.
	acceptPause = 100 * time.Millisecond
	// hangupPoll is how often it is looked whether a client that waits is still there.
	hangupPoll = 200 * time.Millisecond
)

// Serve answers until ctx is done, gives the requests under way a second to
// answer, and returns nil. It closes l. When it returns, no goroutine of it is
// left, save one in a Handle that does not heed its context.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	life, kill := context.WithCancel(context.Background()) // of the connections; they see ctx, too
	defer kill()
	stop := context.AfterFunc(ctx, func() { _ = l.hangUp() }) // ends the Accept below
	defer stop()
	defer l.Close()
	if s.resumed != nil {
		s.start(ctx, life, s.resumed)
	}
	for {
		c, err := l.accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			s.finish(kill)
			return nil
		case errors.Is(err, net.ErrClosed):
			s.finish(kill)
			return fmt.Errorf("serve control socket: %w", err)
		case err != nil:
			pause(ctx, acceptPause)
			continue
		}
		s.admit(ctx, life, l, c)
	}
}

// finish waits for the connections, and ends them when they take too long. Then only a
// Handle can hold one up, as when it reads a file that no server gives out any more.
func (s *Server) finish(kill func()) {
	doneC := make(chan struct{})
	go s.awaitClients(doneC) // ends with the last of them
	for _, end := range []func(){kill, func() {}} {
		select {
		case <-doneC:
			return
		case <-time.After(closeTimeout):
			end()
		}
	}
}

func (s *Server) awaitClients(doneC chan<- struct{}) {
	s.clients.Wait()
	close(doneC)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// admit serves c if its peer may use the socket and there is room.
func (s *Server) admit(ctx, life context.Context, l *Listener, c *net.UnixConn) {
	peer, err := peerOf(c)
	switch {
	case err != nil:
		err = Errorf(CodeRefused, "it is not known who you are: %v", err)
	case peer.UID != 0 && peer.UID != os.Geteuid() && !slices.Contains(l.uids, peer.UID):
		err = Errorf(CodeRefused, "uid %d may not control this rrd: only root, uid %d and those of --control-uid may", peer.UID, os.Geteuid())
	case s.count.Load() >= MaxClients:
		err = Errorf(CodeBusy, "%d clients are connected, which is the most: try again", MaxClients)
	}
	if err != nil {
		_ = c.SetDeadline(time.Now().Add(shortWrite))
		_ = writeReply(c, failure(0, err)) // it may be gone
		_ = c.Close()
		if s.cfg.Denied != nil {
			s.cfg.Denied(peer, err)
		}
		pause(ctx, turnedAwayPause)
		return
	}
	s.start(ctx, life, &client{s: s, c: c, peer: peer, in: lineReader{r: c}})
}

// start serves a connection in a goroutine of its own, which finish waits for.
func (s *Server) start(ctx, life context.Context, k *client) {
	s.count.Add(1)
	s.clients.Go(func() {
		defer s.count.Add(-1)
		k.serve(ctx, life)
	})
}

// client is one connection.
type client struct {
	s      *Server
	c      net.Conn
	peer   Peer
	ctx    context.Context // of what its requests wait for
	cancel context.CancelFunc

	in      lineReader  // while a request runs nothing is read
	first   func() bool // if set, instead of the first request, as answer
	writeMu sync.Mutex
	gone    error // of the first write that failed; guarded by writeMu
}

// serve works off the requests of one connection until it ends, ctx is done
// between two of them, or life is.
func (k *client) serve(ctx, life context.Context) {
	k.ctx, k.cancel = context.WithCancel(ctx)
	unhook := context.AfterFunc(life, func() { _ = k.c.Close() })
	defer unhook()
	defer k.c.Close()
	defer k.cancel()
	if k.first != nil && !k.first() {
		return
	}
	for {
		line, err := k.next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.farewell(err)
			return
		}
		if !k.answer(line) {
			return
		}
	}
}

// next waits for a request. The end of ctx interrupts it.
func (k *client) next(ctx context.Context) ([]byte, error) {
	_ = k.c.SetReadDeadline(time.Now().Add(k.s.idle)) // an error shows when it is read
	stop := context.AfterFunc(ctx, func() { _ = k.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return k.in.next()
}

// farewell says why the master ends the conversation, if it does.
func (k *client) farewell(why error) {
	var err error
	switch {
	case errors.Is(why, errLong):
		err = Errorf(CodeUsage, "a line has more than %d bytes", MaxLine)
		k.handled("", err)
	case errors.Is(why, os.ErrDeadlineExceeded): // nothing was asked, so nothing is counted
		err = Errorf(CodeRefused, "no request came for %v", k.s.idle)
	default:
		return
	}
	_ = k.write(failure(0, err)) // the end in any case
}

func (k *client) handled(cmd string, err error) {
	if k.s.cfg.Handled != nil {
		k.s.cfg.Handled(k.peer, cmd, err)
	}
}

// answer works off one line and says whether the conversation goes on. It does
// not after a line that is no request: what follows may be anything.
func (k *client) answer(line []byte) bool {
	r, err := decodeRequest(line)
	if err != nil {
		pause(k.ctx, wrongPause)
		k.handled("", err)
		_ = k.write(failure(r.ID, err))
		return false
	}
	r.of = k
	result, err := k.handle(r)
	return k.finish(r, result, err)
}

// finish sends the last line about a request, and says whether it could be sent.
func (k *client) finish(r Request, result any, err error) bool {
	out := reply{ID: r.ID}
	if err == nil {
		yes := true
		out.OK = &yes
		if out.Result, err = json.Marshal(result); err == nil && result == nil {
			out.Result = json.RawMessage("{}")
		}
	}
	k.handled(r.Cmd, err)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && (e.Code == CodeUsage || e.Code == CodeUnknown) {
			pause(k.ctx, wrongPause)
		}
		out = failure(r.ID, err)
	}
	return k.write(out) == nil
}

// handle calls the handler. A bug in it costs an answer, not the service.
func (k *client) handle(r Request) (result any, err error) {
	var watcher sync.WaitGroup
	doneC := make(chan struct{})
	watcher.Go(func() { k.watch(doneC) })
	defer watcher.Wait()
	defer close(doneC)
	defer func() {
		if p := recover(); p != nil {
			result, err = nil, Errorf(CodeFailed, "%s: internal error: %v", r.Cmd, p)
		}
	}()
	var over atomic.Bool
	defer over.Store(true)
	emit := func(event any) error {
		if over.Load() { // of what goes on although nobody waits
			return net.ErrClosed
		}
		raw, err := json.Marshal(event)
		if err != nil {
			return err
		}
		return k.write(reply{ID: r.ID, Event: raw})
	}
	return k.s.cfg.Handler.Handle(k.ctx, k.peer, r, emit)
}

func (k *client) write(r reply) error {
	k.writeMu.Lock()
	defer k.writeMu.Unlock()
	if k.gone == nil {
		_ = k.c.SetWriteDeadline(time.Now().Add(WriteTimeout)) // an error shows in the write
		if k.gone = writeReply(k.c, r); k.gone != nil {
			k.cancel()
		}
	}
	return k.gone
}

func writeReply(w io.Writer, r reply) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// failure is the reply to what did not succeed.
func failure(id uint64, err error) reply {
	no := false
	r := reply{ID: id, OK: &no, Error: oneLine(err.Error()), Code: CodeFailed}
	var e *Error
	if errors.As(err, &e) {
		r.Code = e.Code
	}
	return r
}

func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}

// watch looks after the client of a request that runs: nobody is waited for that has
// hung up, also if it had asked for more.
func (k *client) watch(doneC <-chan struct{}) {
	tick := time.NewTicker(hangupPoll)
	defer tick.Stop()
	for {
		select {
		case <-doneC:
			return
		case <-tick.C:
			if hungUp(k.c) {
				k.cancel()
				return
			}
		}
	}
}

var errLong = errors.New("line is too long")

// lineReader reads lines of at most MaxLine bytes. What it has of a line survives
// a deadline.
type lineReader struct {
	r   io.Reader
	buf []byte
	n   int // bytes in buf
	// seen is how far there is no line feed.
	seen int
}

// next returns a copy of the next line, without its line feed.
func (l *lineReader) next() ([]byte, error) {
	for {
		if i := slices.Index(l.buf[l.seen:l.n], '\n'); i >= 0 {
			end := l.seen + i
			line := slices.Clone(l.buf[:end])
			l.n = copy(l.buf, l.buf[end+1:l.n])
			l.seen = 0
			if line == nil {
				line = []byte{}
			}
			return line, nil
		}
		l.seen = l.n
		if l.n == MaxLine {
			return nil, errLong
		}
		if l.n == len(l.buf) {
			l.buf = append(l.buf, make([]byte, min(max(len(l.buf), 1<<10), MaxLine-len(l.buf)))...)
		}
		n, err := l.r.Read(l.buf[l.n:])
		l.n += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}
