package aside

import (
	"context"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// await has the client read until an answer is there.
func (w *world) await(got *[]Answer) Answer {
	w.Helper()
	deadline := time.Now().Add(patience)
	for len(*got) == 0 {
		if time.Now().After(deadline) {
			w.Fatal("no answer")
		}
		p := []unix.PollFd{{Fd: int32(w.c.helpers[0].fd.Num()), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 100)
		w.c.Receive(w.c.helpers[0].token)
		w.c.Flush(w.now)
	}
	return (*got)[0]
}

// listening makes a TCP listener and connects to it n times.
func (w *world) listening(n int) (handoff.FD, []net.Conn) {
	w.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // it has fewer options
	ln, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = ln.Close() })
	var clients []net.Conn
	for range n {
		c, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { _ = c.Close() })
		clients = append(clients, c)
	}
	var d handoff.FD
	rc, err := ln.(*net.TCPListener).SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { d, err = handoff.Own(int(fd)).Dup() })
	}
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = d.Close() })
	return d, clients
}

func TestCallsOnAListener(t *testing.T) {
	w := newWorld(t)
	w.serve()
	ln, clients := w.listening(3)
	a := w.await(w.asked(Request{Call: Listen, FD: ln, Arg: 7, Key: 1}))
	if !a.Known || a.Errno != 0 {
		t.Errorf("listen: %+v", a)
	}
	a = w.await(w.asked(Request{Call: Queue, FD: ln, Key: 1}))
	if f, ok := a.Queue(); !ok || f.Length != 3 || f.Limit != 7 {
		t.Errorf("queue: %+v", a)
	}
	for call, want := range map[Call]syscall.Errno{DetachFilter: unix.ENOENT, DetachReuseport: unix.EINVAL} {
		if a = w.await(w.asked(Request{Call: call, FD: ln, Key: 1})); a.Errno != want {
			t.Errorf("call %d: %+v, want %v", call, a, want)
		}
	}
	if a = w.await(w.asked(Request{Call: RefuseNew, FD: ln, Key: 1})); a.Errno != 0 {
		t.Errorf("refuse new: %+v", a)
	}
	if a = w.await(w.asked(Request{Call: DetachFilter, FD: ln, Key: 1})); a.Errno != 0 {
		t.Errorf("detach: %+v", a)
	}
	if _, err := clients[0].Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	// A worker has made it block. The helper sees to it.
	if err := unix.SetNonblock(ln.Num(), false); err != nil {
		t.Fatal(err)
	}
	a = w.await(w.asked(Request{Call: Accept, FD: ln, Arg: 2, Key: 1}))
	if len(a.FDs) != 2 || a.Errno != 0 {
		t.Fatalf("accept: %+v", a)
	}
	defer closeAll(a.FDs)
	b := w.await(w.asked(Request{Call: Accept, FD: ln, Arg: MaxAccept, Key: 1}))
	defer closeAll(b.FDs)
	if len(b.FDs) != 1 {
		t.Errorf("accept: %+v", b)
	}
	if c := w.await(w.asked(Request{Call: Accept, FD: ln, Arg: 1, Key: 1})); c.Errno != unix.EAGAIN {
		t.Errorf("accept from an empty queue: %+v", c)
	}
	p := []unix.PollFd{{Fd: int32(a.FDs[0].Num()), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, int(patience/time.Millisecond)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got := w.await(w.asked(Request{Call: Conn, FD: a.FDs[0], Key: 1}))
	if f, ok := got.Conn(); !ok || f.Received != 5 || f.Unread != 5 || f.Sent != 0 || f.State != 1 {
		t.Errorf("conn: %+v", got)
	}
	if got = w.await(w.asked(Request{Call: Conn, FD: w.file(), Key: 1})); got.Errno != unix.ENOTSOCK {
		t.Errorf("conn of a file: %+v", got)
	}
}

func TestRecallByAHelper(t *testing.T) {
	w := newWorld(t)
	w.serve()
	master, child, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer child.Close()
	d := w.file()
	for seq := range uint64(3) {
		master.Add(seq+1, 0, 0, d)
		if err := master.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	end, some := master.Unread()
	if !some {
		t.Fatal("nothing is unread")
	}
	var seqs []uint64
	got := w.asked(Request{Call: Recall, FD: end, Key: 1, Part: func(msg []byte) {
		if err := handoff.Frames(msg, func(f *handoff.Frame) { seqs = append(seqs, f.Seq) }); err != nil {
			t.Error(err)
		}
	}})
	if a := w.await(got); !a.Known || a.Errno != 0 || !slices.Equal(seqs, []uint64{1, 2, 3}) {
		t.Errorf("%+v, %v", a, seqs)
	}
	if _, some := master.Unread(); some {
		t.Error("something is left")
	}
}

// Connections that would linger are closed, and nothing waits for their clients.
func TestDiscardedConnections(t *testing.T) {
	w := newWorld(t)
	w.serve()
	ln, clients := w.listening(3)
	a := w.await(w.asked(Request{Call: Accept, FD: ln, Arg: 3, Key: 1}))
	if len(a.FDs) != 3 {
		t.Fatalf("%+v", a)
	}
	for i := range a.FDs {
		d := a.FDs[i].Num()
		if err := unix.SetsockoptLinger(d, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}); err != nil {
			t.Fatal(err)
		}
		for err := error(nil); err == nil; _, err = unix.Write(d, make([]byte, 1<<16)) { // until it is full
			_ = unix.SetNonblock(d, true)
		}
		if !w.c.Discard(&a.FDs[i]) || a.FDs[i].Valid() {
			t.Fatal("not taken")
		}
	}
	w.c.Flush(w.now)
	_ = w.await(w.asked(Request{Call: Listen, FD: ln, Arg: 7, Key: 1})) // the helper goes on
	for _, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n := 0
		for b := make([]byte, 1<<16); ; {
			m, err := c.Read(b)
			n += m
			if err != nil {
				if n == 0 || os.IsTimeout(err) {
					t.Errorf("the client got %d bytes and %v", n, err)
				}
				break
			}
		}
	}
}

func TestDiscardsAreBounded(t *testing.T) {
	w := newWorld(t)
	d := w.file()
	for n := 0; ; n++ {
		dup, err := d.Dup()
		if err != nil {
			t.Fatal(err)
		}
		if !w.c.Discard(&dup) {
			_ = dup.Close()
			if n != maxDiscards {
				t.Errorf("%d were taken", n)
			}
			break
		}
	}
	w.c.Flush(w.now)
	if w.wanted != 1 {
		t.Error("no helper is wanted")
	}
	w.serve()
	deadline := time.Now().Add(patience)
	for !w.c.Quiet() && time.Now().Before(deadline) {
		w.c.Receive(1)
		w.c.Flush(w.now)
	}
	if !w.c.Quiet() {
		t.Error("they are not all closed")
	}
}
