//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// worker is this process's side of the conversation.
type worker struct {
	port   *handoff.Port
	answer answer
	decide func(turn) decision
	book   *ledger
	chance *rand.Rand

	armedFile string // without it nobody misbehaves; empty: always
	kind      string // of violation; empty: any
	asked     string // what its LISTEN says
	gate      string
	attack    func(*worker) error // right after READY; nil: none
	channel   int                 // the descriptor's number, which port owns
	lent      int                 // of the listener that is lent to a mode with an attack

	mu       sync.Mutex
	gateOpen bool
	touches  bool // the master wants TOUCHED
	draining bool
	drained  bool
	received int // handoffs
	open     int // acked connections
	kept     []held
	holding  []*os.File      // what is in flight for nothing
	held     []net.Conn      // acked and not touched
	rejected map[uint32]bool // listeners that wait for our AGAIN
	ln       net.Listener    // under none and reuseport

	serving sync.WaitGroup
}

// held is a connection that waits for the gate.
type held struct {
	f  handoff.Frame
	fd handoff.FD
}

func newWorker(port *handoff.Port, slot string, decide func(turn) decision) *worker {
	w := &worker{port: port, decide: decide, rejected: make(map[uint32]bool)}
	w.answer.slot, _ = strconv.Atoi(slot)
	w.answer.generation, _ = strconv.Atoi(os.Getenv(handoff.EnvGeneration))
	return w
}

// converse goes on until the master ends this process or is gone.
func (w *worker) converse(network, address string) error {
	w.asked = network + "\x00" + address
	if err := w.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte(w.asked)}); err != nil {
		return err
	}
	var m handoff.Message
	for {
		if err := w.port.Receive(&m); err != nil {
			if errors.Is(err, io.EOF) {
				signal.Ignore(syscall.SIGPIPE) // our output may be gone as well
				w.serving.Wait()
				return nil
			}
			return err
		}
		next := 0
		for i := range m.N {
			f := &m.Frames[i]
			var fd handoff.FD
			if f.Type == handoff.Handoff || f.Type == handoff.Listening && f.Flags&handoff.ListeningShared != 0 {
				if next < m.NumFDs {
					fd = handoff.Own(m.FDs[next].Release())
				}
				next++
			}
			if err := w.hear(f, fd); err != nil {
				return err
			}
		}
	}
}

func (w *worker) hear(f *handoff.Frame, fd handoff.FD) error {
	switch f.Type {
	case handoff.Hello:
		w.mu.Lock()
		w.touches = f.Flags&handoff.HelloTouches != 0
		w.mu.Unlock()
		if w.kind == "keys" {
			return w.say(handoff.Frame{Type: handoff.AskTickets})
		}
	case handoff.Tickets:
		w.book.keys(f.Payload)
	case handoff.Listening:
		if f.Arg != 0 {
			return fmt.Errorf("listen: %w: %s", syscall.Errno(f.Arg), f.Payload)
		}
		if f.Flags&handoff.ListeningShared != 0 {
			if w.attack != nil && w.armed() {
				w.lent = fd.Release() // for the attack
			} else if err := w.share(fd); err != nil {
				return err
			}
		}
		if w.kind == "early" && w.armed() {
			if err := w.say(handoff.Frame{Type: handoff.Ack, Seq: 1}); err != nil {
				return err
			}
			forever()
		}
		ready := handoff.Frame{Type: handoff.Ready}
		w.mu.Lock()
		if w.touches {
			ready.Flags = handoff.ReadyTouches
		}
		w.mu.Unlock()
		if err := w.say(ready); err != nil || w.attack == nil || !w.armed() {
			return err
		}
		return w.attack(w)
	case handoff.Ping:
		return w.say(handoff.Frame{Type: handoff.Pong, Seq: f.Seq})
	case handoff.Drain:
		return w.drain()
	case handoff.Handoff:
		return w.handoff(*f, fd)
	}
	return nil
}

func (w *worker) handoff(f handoff.Frame, fd handoff.FD) error {
	w.mu.Lock()
	draining, open := w.draining, w.gateOpen
	w.received++
	n := w.received
	w.mu.Unlock()
	switch {
	case !fd.Valid():
		return w.say(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: uint32(handoff.ReasonFDLimit)},
			handoff.Frame{Type: handoff.Again, Listener: f.Listener})
	case draining:
		_ = fd.Close()
		return w.say(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: uint32(handoff.ReasonDraining)})
	}
	what := w.decide(turn{n: n, f: &f, open: open, armed: w.armed(), chance: w.chance})
	if what == busySilent || what == keep {
		if w.waits(what, &f, fd) {
			return nil
		}
		what = take // the gate has opened since
	}
	switch what {
	case busy:
		_ = fd.Close()
		return w.say(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: uint32(handoff.ReasonBusy)},
			handoff.Frame{Type: handoff.Again, Listener: f.Listener})
	case dieUnacked:
		w.serving.Wait() // what was acked before is to be served
		die()
	case dieAcked, dieTouched, dieRead, hold:
		return w.ackOnly(what, &f, fd)
	case stall:
		w.serving.Wait()
		forever()
	case violate:
		w.violate(&f)
	case hostile:
		return w.hostile(&f)
	case leave:
		w.serving.Wait()
		_ = w.port.Close()
		forever()
	case orphan:
		w.serving.Wait()
		if err := w.grandchild(); err != nil {
			return err
		}
		die()
	case lockConnection:
		return w.lockConnection(&f, fd)
	case bomb:
		w.bomb(100)
	case flood:
		w.flood(20 * time.Millisecond)
	case fill:
		if err := w.inFlight(); err != nil {
			return err
		}
	}
	return w.take(&f, fd)
}

func (w *worker) armed() bool { return w.armedFile == "" || exists(w.armedFile) }

// ackOnly acks a connection that it does not serve.
func (w *worker) ackOnly(what decision, f *handoff.Frame, fd handoff.FD) error {
	if what != hold {
		w.serving.Wait() // what was acked before is to be served
	}
	file := os.NewFile(uintptr(fd.Release()), "connection")
	c, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return err
	}
	if what == dieTouched || what == dieRead {
		w.book.begin(c)
	}
	all := []handoff.Frame{{Type: handoff.Ack, Seq: f.Seq}}
	w.mu.Lock()
	if what == dieTouched && w.touches {
		all = append(all, handoff.Frame{Type: handoff.Touched, Seq: f.Seq})
	}
	w.held = append(w.held, c)
	open := w.gateOpen
	w.mu.Unlock()
	if err := w.say(all...); err != nil {
		return err
	}
	switch what {
	case hold:
		if !open {
			return nil
		}
	case dieRead:
		_, _ = c.Read(make([]byte, 1))
	}
	die()
	return nil
}

// waits lets a connection, or the whole listener, wait for the gate; false: it is
// open.
func (w *worker) waits(what decision, f *handoff.Frame, fd handoff.FD) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gateOpen {
		return false
	}
	if what == keep {
		w.kept = append(w.kept, held{*f, fd})
		return true
	}
	_ = fd.Close()
	w.rejected[f.Listener] = true
	// Under the lock, so that it comes before the AGAIN.
	_ = w.say(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: uint32(handoff.ReasonBusy)})
	return true
}

// take acks a connection and serves it.
func (w *worker) take(f *handoff.Frame, fd handoff.FD) error {
	file := os.NewFile(uintptr(fd.Release()), "connection")
	c, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return err
	}
	w.book.begin(c)
	frames := []handoff.Frame{{Type: handoff.Ack, Seq: f.Seq}}
	w.mu.Lock()
	w.open++
	if w.touches {
		frames = append(frames, handoff.Frame{Type: handoff.Touched, Seq: f.Seq})
	}
	w.mu.Unlock()
	if err := w.say(frames...); err != nil {
		return err
	}
	n := w.answer.connections.Add(1) // in the order of the acks
	w.serving.Go(func() {
		w.answer.serve(c, n)
		w.mu.Lock()
		w.open--
		w.mu.Unlock()
		_ = w.say(handoff.Frame{Type: handoff.Closed, Arg: 1}) // a master that is gone needs no count
		_ = w.maybeDrained()
	})
	return nil
}

// share accepts by itself.
func (w *worker) share(fd handoff.FD) error {
	file := os.NewFile(uintptr(fd.Release()), "listener")
	ln, err := net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.ln = ln
	w.mu.Unlock()
	w.serving.Go(func() { w.accept(ln) })
	return nil
}

func (w *worker) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.open++
		w.mu.Unlock()
		n := w.answer.connections.Add(1)
		w.serving.Go(func() {
			w.answer.serve(c, n)
			w.mu.Lock()
			w.open--
			w.mu.Unlock()
			_ = w.maybeDrained()
		})
	}
}

func (w *worker) drain() error {
	w.mu.Lock()
	w.draining = true
	if w.ln != nil {
		_ = w.ln.Close()
	}
	w.mu.Unlock()
	return w.maybeDrained()
}

func (w *worker) maybeDrained() error {
	w.mu.Lock()
	done := w.draining && !w.drained && w.open == 0
	w.drained = w.drained || done
	w.mu.Unlock()
	if !done {
		return nil
	}
	return w.say(handoff.Frame{Type: handoff.Drained})
}

// isOpen says whether somebody has the FIFO open for writing: then a read would wait. Who
// starts when it is never misbehaves, not even before waitAt has run.
func isOpen(gate string) (bool, error) {
	n, err := unix.Open(gate, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("open", err)
	}
	fd := handoff.Own(n)
	defer fd.Close() //nolint:errcheck // nothing was written
	_, err = unix.Read(fd.Num(), make([]byte, 1))
	return errors.Is(err, unix.EAGAIN), nil
}

// waitAt waits until somebody opens the FIFO for writing; then this worker takes
// everything, first what it has kept.
func (w *worker) waitAt(gate string) {
	f, err := os.Open(gate)
	if err != nil {
		fmt.Fprintf(os.Stderr, "faultworker: %v\n", err)
		os.Exit(1)
	}
	_ = f.Close()
	w.mu.Lock()
	w.gateOpen = true
	if len(w.held) > 0 {
		die()
	}
	for _, f := range w.holding {
		_ = f.Close()
	}
	kept, rejected := w.kept, w.rejected
	w.kept, w.rejected = nil, make(map[uint32]bool)
	w.mu.Unlock()
	for i := range kept {
		if err := w.take(&kept[i].f, kept[i].fd); err != nil {
			return
		}
	}
	for listener := range rejected {
		if err := w.say(handoff.Frame{Type: handoff.Again, Listener: listener}); err != nil {
			return
		}
	}
}

// say sends frames as one message.
func (w *worker) say(frames ...handoff.Frame) error {
	var b []byte
	for i := range frames {
		b = frames[i].Append(b)
	}
	return w.port.Send(b)
}
