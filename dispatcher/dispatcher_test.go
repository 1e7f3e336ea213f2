package dispatcher

import (
	"context"
	"testing"
	"time"
)

func TestSequentialConnectionsGoRoundExactly(t *testing.T) {
	readyC := make(chan uint64, 4)
	d, err := New(Config{Configured: true, Hooks: Hooks{Ready: func(w uint64) { readyC <- w }}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.Listen(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	var ws []*testWorker
	for i := range 4 {
		ws = append(ws, startWorker(t, d, uint64(i+1), i, "web"))
		<-readyC
	}
	counts := map[byte]int{}
	const n = 400
	for range n {
		b, err := dialOne(info.Address)
		if err != nil {
			t.Fatal(err)
		}
		counts[b]++
	}
	for w, served := range counts {
		if served != n/4 {
			t.Errorf("worker %d served %d of %d", w, served, n)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := d.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := d.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, ln := range s.Listeners {
		if missing, ok := ln.Lawful(); !ok || ln.Acked != n {
			t.Errorf("%s: %d missing, %+v", ln.Name, missing, ln)
		}
	}
	for _, w := range ws {
		_ = d.Remove(w.id, Removal{})
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, w := range ws {
		w.done.Wait()
		_ = w.port.Close()
	}
}
