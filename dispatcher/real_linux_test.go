package dispatcher

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// running is a Dispatcher with its own loop, and workers on goroutines that
// accept, answer and close.
type running struct {
	*testing.T
	*Dispatcher
	readyC  chan uint64
	closedC chan string
	ids     atomic.Uint64
	workers []*autoWorker
}

func run(t *testing.T, cfg Config) *running {
	t.Helper()
	leakcheck.Check(t)
	r := &running{T: t, readyC: make(chan uint64, 64), closedC: make(chan string, 64)}
	cfg.Hooks.Ready = func(w uint64) { r.readyC <- w }
	cfg.Hooks.Closed = func(i ListenerInfo) { r.closedC <- i.Name }
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Dispatcher = d
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for _, w := range r.workers {
			_ = w.port.Close()
			w.done.Wait()
		}
	})
	return r
}

func (r *running) open(c ListenerConfig) ListenerInfo {
	r.Helper()
	c.UID, c.GID = -1, -1
	info, err := r.Listen(c)
	if err != nil {
		r.Fatal(err)
	}
	return info
}

// autoWorker acks and serves each connection: reads a byte, writes it back.
type autoWorker struct {
	id     uint64
	port   *handoff.Port
	served atomic.Int64
	done   sync.WaitGroup
}

// start adds a worker that serves these listeners, by name, and waits until it
// is ready.
func (r *running) start(network string, names ...string) *autoWorker {
	r.Helper()
	master, port, raw := newChannel(r.T)
	_ = unix.Close(raw)
	w := &autoWorker{id: r.ids.Add(1), port: port}
	if err := r.Add(Worker{ID: w.id, Slot: int(w.id) - 1, Channel: master}); err != nil {
		r.Fatal(err)
	}
	r.workers = append(r.workers, w)
	for i, name := range names {
		w.say(r.T, handoff.Frame{Type: handoff.Listen, Seq: uint64(i), Payload: []byte(network + "\x00" + name)})
	}
	w.say(r.T, readyFrame)
	w.done.Add(1)
	go w.run() // the cleanup of run waits for it
	select {
	case <-r.readyC:
	case <-time.After(patience):
		r.Fatal("the worker does not become ready")
	}
	return w
}

func (w *autoWorker) say(t testing.TB, f handoff.Frame) {
	t.Helper()
	if err := w.port.Send(f.Append(nil)); err != nil {
		t.Fatal(err)
	}
}

func (w *autoWorker) run() {
	defer w.done.Done()
	var m handoff.Message
	for w.port.Receive(&m) == nil {
		var out []byte
		for _, f := range m.Frames[:m.N] {
			switch f.Type {
			case handoff.Handoff:
				out = (&handoff.Frame{Type: handoff.Ack, Seq: f.Seq}).Append(out)
			case handoff.Ping:
				out = (&handoff.Frame{Type: handoff.Pong, Seq: f.Seq}).Append(out)
			}
		}
		if len(out) > 0 && w.port.Send(out) != nil {
			return
		}
		for i := range m.NumFDs {
			w.done.Add(1)
			go w.serve(m.FDs[i].Release()) // done waits for it
		}
		m.NumFDs = 0
	}
}

// serve echoes one byte.
func (w *autoWorker) serve(fd int) {
	defer w.done.Done()
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	_ = f.SetDeadline(time.Now().Add(patience))
	var b [1]byte
	if _, err := io.ReadFull(f, b[:]); err == nil {
		w.served.Add(1)
		_, _ = f.Write(b[:])
	}
}

// storm connects from several goroutines until stopped or refused, and counts
// those that were connected and those that were answered.
type storm struct {
	connected, answered atomic.Int64
	stop                chan struct{}
	done                sync.WaitGroup
}

func newStorm(network, address string, clients int) *storm {
	s := &storm{stop: make(chan struct{})}
	for range clients {
		s.done.Add(1)
		go s.client(network, address) // end waits for it
	}
	return s
}

func (s *storm) client(network, address string) {
	defer s.done.Done()
	d := net.Dialer{Timeout: 300 * time.Millisecond} // a SYN that is dropped is sent again after a second
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		c, err := d.Dial(network, address)
		if err != nil {
			return
		}
		s.connected.Add(1)
		_ = c.SetDeadline(time.Now().Add(patience))
		var b [1]byte
		if _, err = c.Write([]byte{7}); err == nil {
			_, err = io.ReadFull(c, b[:])
		}
		if err == nil && b[0] == 7 {
			s.answered.Add(1)
		}
		_ = c.Close()
	}
}

func (s *storm) end() {
	close(s.stop)
	s.done.Wait()
}

func TestShutdownLosesNobody(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp", "unix"} {
		for _, policy := range []Policy{SchedRR} {
			t.Run(network+"-"+string(policy), func(t *testing.T) {
				for round := range 3 {
					shutdownInAStorm(t, network, policy, round)
				}
			})
		}
	}
}

func shutdownInAStorm(t *testing.T, network string, policy Policy, round int) {
	t.Helper()
	r := run(t, Config{Policy: policy, Configured: true})
	address := map[string]string{"tcp4": "127.0.0.1:0", "tcp": "[::]:0", "unix": t.TempDir() + "/s"}[network]
	info := r.open(ListenerConfig{Name: "web", Network: network, Address: address})
	for range 2 {
		r.start(network, "web")
	}
	target := info.Address
	if network == "tcp" {
		_, port, _ := net.SplitHostPort(info.Address)
		target = "127.0.0.1:" + port
	}
	s := newStorm(network[:min(4, len(network))], target, 8)
	waitFor(t, "the storm has begun", func() bool { return s.answered.Load() > 100 })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	if err := r.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	took := time.Since(began)
	s.end()
	if c, a := s.connected.Load(), s.answered.Load(); c != a {
		t.Errorf("round %d: %d connected, %d answered", round, c, a)
	}
	st, err := r.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ln := st.Listeners[0]
	if _, ok := ln.Lawful(); !ok || ln.Acked < uint64(s.answered.Load()) || ln.Open {
		t.Errorf("%+v", ln)
	}
	if took > 900*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	for _, w := range r.workers {
		_ = r.Remove(w.id, Removal{})
	}
}

// waitFor looks until ok, without assuming how long that takes.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestStatsAreLawfulUnderLoad(t *testing.T) {
	r := run(t, Config{Configured: true})
	info := r.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0"})
	for range 3 {
		r.start("tcp", "web")
	}
	s := newStorm("tcp", info.Address, 4)
	for n := 0; n < 50 || s.answered.Load() < 500; n++ {
		st, err := r.Stats(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if missing, ok := st.Listeners[0].Lawful(); !ok {
			t.Fatalf("%d missing: %+v", missing, st.Listeners[0])
		}
		flying := 0
		for _, slot := range st.Slots {
			flying += slot.InFlight
		}
		if flying != st.Listeners[0].InFlight {
			t.Fatalf("%d in flight by slot, %d by listener", flying, st.Listeners[0].InFlight)
		}
	}
	s.end()
	if s.connected.Load() != s.answered.Load() {
		t.Errorf("%d connected, %d answered", s.connected.Load(), s.answered.Load())
	}
}

func TestCloseWhileEverythingIsBusy(t *testing.T) {
	r := run(t, Config{})
	master, port, raw := newChannel(t)
	_ = unix.Close(raw)
	if err := r.Add(Worker{ID: 99, Slot: 9, Channel: master}); err != nil {
		t.Fatal(err)
	}
	w := r.start("tcp", "127.0.0.1:0") // asks for a listener
	_ = w
	for i := range 10 { // and more are being bound while it is closed
		f := handoff.Frame{Type: handoff.Listen, Seq: uint64(i), Payload: []byte("tcp\x00127.0.0.1:0")}
		if i%2 == 1 {
			f.Payload = []byte("udp\x00127.0.0.1:0")
		}
		if err := port.Send(f.Append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				if _, err := r.Stats(context.Background()); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		}()
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	_ = port.Close()
	for _, err := range []error{r.Drain(1), r.Remove(1, Removal{}), r.ForgetSlot(1), r.Shutdown(context.Background())} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if _, err := r.Listen(ListenerConfig{Name: "late", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1}); !errors.Is(err, ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
}

// A hook that blocks holds up hooks, not the closing of listeners.
func TestShutdownFromAHook(t *testing.T) {
	leakcheck.Check(t)
	var d *Dispatcher
	made := make(chan struct{})
	result := make(chan error, 1)
	d, err := New(Config{Configured: true, Hooks: Hooks{Opened: func(ListenerInfo) {
		<-made
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		result <- d.Shutdown(ctx)
	}}})
	if err != nil {
		t.Fatal(err)
	}
	close(made)
	if _, err := d.Listen(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1}); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
