//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// What the service manager is told, by sd_notify(3): when rrd is ready, reloads and
// stops, how it is in one line, that the dispatch loop still turns, and which
// sockets it is to hold in case rrd dies.

const (
	// statusEvery is how often STATUS= may change.
	statusEvery = time.Second
	// extendEvery is how often more time is asked for while rrd stops, and extendBy
	// for how much, from then on.
	extendEvery = 5 * time.Second
	extendBy    = 15 * time.Second
	// maxStatus bounds the line; a datagram is bounded too.
	maxStatus = 500
	// maxNotices bounds what waits for a service manager that does not read; more is
	// left out.
	maxNotices = 256
)

// notice is one datagram.
type notice struct {
	text string
	file *os.File // nil, or what goes with it; closed when it is sent
}

// notifier has the notices sent one after the other, by a goroutine of its own, so
// that nobody waits for the service manager. All methods of a nil one do nothing: there
// is no service manager.
type notifier struct {
	send      func(notice) error
	watchdog  time.Duration // within which it wants a sign of life; 0: it wants none
	monotonic func() string // "MONOTONIC_USEC=...\n", or nothing where there is none
	log       zerolog.Logger

	mu       sync.Mutex
	queue    []notice
	closed   bool
	failed   bool // the last one could not be sent; told once
	ready    bool // READY=1 was said
	stopping bool
	left     bool      // asked to stop, and not called back
	extended time.Time // when more time was asked for last; zero: it need not be
	status   string    // last said

	wakeC chan struct{} // a token: the queue may be non-empty
}

func newNotifier(log zerolog.Logger, send func(notice) error, watchdog time.Duration, monotonic func() string) *notifier {
	return &notifier{send: send, watchdog: watchdog, monotonic: monotonic, log: log, wakeC: make(chan struct{}, 1)}
}

// say queues notices; the notifier owns their files.
func (n *notifier) say(list ...notice) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sayLocked(list...)
}

func (n *notifier) sayLocked(list ...notice) {
	for _, x := range list {
		if n.closed || len(n.queue) >= maxNotices {
			x.close()
			continue
		}
		n.queue = append(n.queue, x)
	}
	n.wake()
}

func (x notice) close() {
	if x.file != nil {
		_ = x.file.Close() // a duplicate
	}
}

func (n *notifier) wake() {
	select {
	case n.wakeC <- struct{}{}:
	default:
	}
}

// deliver sends what is said until close, and then what is left. watch waits for it.
func (n *notifier) deliver() {
	for range n.wakeC {
		n.mu.Lock()
		list, closed := n.queue, n.closed
		n.queue = nil
		n.mu.Unlock()
		for _, x := range list {
			if !n.abandoned() {
				n.note(n.send(x))
			}
			x.close()
		}
		if closed {
			return
		}
	}
}

// abandoned says whether the end would wait for a service manager that cannot be told
// anything.
func (n *notifier) abandoned() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed && n.failed
}

// note tells the first of a row of failures.
func (n *notifier) note(err error) {
	n.mu.Lock()
	first := err != nil && !n.failed
	n.failed = err != nil
	n.mu.Unlock()
	if first {
		n.log.Warn().Str("event", "systemd.failed").Err(err).Msg("the service manager cannot be told how rrd is")
	}
}

func (n *notifier) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.wake()
}

// health is what the watch asks the master.
type health struct {
	// turns waits for a turn of the dispatch loop, and fails if none comes in time.
	turns func(ctx context.Context) error
	// line is the status in one line, and how many workers are ready.
	line func(ctx context.Context) (status string, ready int)
}

// watch keeps the service manager up to date until ctx ends.
func (n *notifier) watch(ctx context.Context, h health) {
	if n == nil {
		return
	}
	var delivery sync.WaitGroup
	delivery.Go(n.deliver)
	defer delivery.Wait()
	defer n.close()
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	if n.watchdog > 0 {
		// Apart, for a status that waits for a stuck loop is no reason to miss a
		// turn that comes after all.
		var beats sync.WaitGroup
		beats.Go(func() { n.feedWatchdog(ctx, h) })
		defer beats.Wait()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-status.C:
			line, ready := h.line(ctx)
			n.tick(now, line, ready)
		}
	}
}

// feedWatchdog says WATCHDOG=1 twice as often as is wanted, each time after a turn of
// the dispatch loop: not a timer is alive then, but what serves. A loop that is stuck
// lets it lapse.
func (n *notifier) feedWatchdog(ctx context.Context, h health) {
	beat := time.NewTicker(n.watchdog / 2)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			limited, cancel := context.WithTimeout(ctx, n.watchdog)
			if h.turns(limited) == nil {
				n.say(notice{text: "WATCHDOG=1"})
			}
			cancel()
		}
	}
}

// tick is once a second.
func (n *notifier) tick(now time.Time, line string, ready int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case ready > 0 && !n.ready && !n.stopping:
		n.readyLocked(line)
	case line != n.status:
		n.status = line
		n.sayLocked(notice{text: "STATUS=" + line})
	}
	if !n.extended.IsZero() && now.Sub(n.extended) >= extendEvery {
		n.extendLocked(now)
	}
}

// becameReady: a worker is. Only the first is news.
func (n *notifier) becameReady(line func() string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	first := !n.ready && !n.stopping
	n.mu.Unlock()
	if !first {
		return
	}
	text := line()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ready && !n.stopping {
		n.readyLocked(text)
	}
}

func (n *notifier) readyLocked(line string) {
	n.ready, n.status = true, line
	n.sayLocked(notice{text: "READY=1\nSTATUS=" + line})
}

// reloading begins a reload; the function it returns ends it. While none was ready, the
// service is still starting to the service manager, and that must not end with a reload.
func (n *notifier) reloading(line func() string) (done func()) {
	if n == nil {
		return func() {}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ready || n.stopping {
		return func() {}
	}
	n.status = "reloading"
	n.sayLocked(notice{text: "RELOADING=1\n" + n.monotonic() + "STATUS=" + n.status})
	n.extended = time.Now() // one that takes longer than that asks for more time, see tick
	return func() {
		text := line()
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.left {
			n.extended = time.Time{}
		}
		if !n.stopping {
			n.readyLocked(text)
		}
	}
}

// leaving: rrd was asked to stop and still serves. The service manager's time for a stop
// runs from here.
func (n *notifier) leaving() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left = true
	n.extendLocked(time.Now())
}

// staying takes that back.
func (n *notifier) staying() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left, n.extended = false, time.Time{}
}

// stops: from here on there is no way back.
func (n *notifier) stops() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.stopping {
		n.stopping, n.left, n.status = true, true, "draining"
		n.sayLocked(notice{text: "STOPPING=1\nSTATUS=" + n.status})
		n.extendLocked(time.Now())
	}
}

func (n *notifier) extendLocked(now time.Time) {
	n.extended = now
	n.sayLocked(notice{text: fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds())})
}

// serveNotify is the notifier's part of the master until ctx ends.
func (m *master) serveNotify(ctx context.Context) {
	m.notify.watch(ctx, health{turns: m.turns, line: m.statusLine})
}

// turns waits for the loop: a copy of its counts is made between two turns.
func (m *master) turns(ctx context.Context) error {
	_, err := m.dispatcher.Stats(ctx)
	return err
}

// statusLine is what `systemctl status` shows.
func (m *master) statusLine(ctx context.Context) (line string, ready int) {
	ctx, cancel := context.WithTimeout(ctx, statusEvery)
	defer cancel()
	p := m.pool.Snapshot()
	for i := range p.Slots {
		if p.Slots[i].State == pool.StateReady {
			ready++
		}
	}
	var b strings.Builder
	switch {
	case m.duck.drains():
		b.WriteString("draining: ")
	case m.duck.lame():
		b.WriteString("lame duck: ")
	}
	if why := m.reloadCounts().LastFailure; why != "" {
		fmt.Fprintf(&b, "reload failed: %s; ", why)
	}
	counts, err := m.snapshot(ctx)
	if is := metrics.Ready(counts, err); !is.OK && !m.draining.Load() {
		fmt.Fprintf(&b, "not ready: %s; ", is.Reason)
	}
	fmt.Fprintf(&b, "%d/%d workers ready, policy %s", ready, p.Desired, m.cfg.Policy)
	if err == nil && m.cfg.Policy == dispatcher.SchedRR {
		queue := 0
		for i := range counts.Listeners {
			queue += counts.Listeners[i].Queued
		}
		fmt.Fprintf(&b, ", queue %d", queue)
	}
	return shortened(oneLine(b.String()), maxStatus), ready
}

// statusText is statusLine for who needs no more.
func (m *master) statusText() string {
	line, _ := m.statusLine(context.Background())
	return line
}

// shortened cuts s to n bytes, at a character.
func shortened(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

// The sockets of the configuration are held by the service manager as well (FDSTORE=1),
// so that clients queue up while there is no master and the next one serves them. They
// are taken out of its store before they are closed: what it holds is always open.

// keepSockets has the sockets of these listeners held.
func (m *master) keepSockets(list []dispatcher.ListenerConfig) {
	if m.notify == nil {
		return
	}
	for _, c := range list {
		if c.Network == "fd" {
			continue // they have an owner, who has opened them
		}
		files, err := m.dispatcher.Sockets(c.Name, c.Address)
		if err != nil {
			m.log.Warn().Str("event", "systemd.failed").Str("listener", c.Name).Err(err).Msg("the socket cannot be kept for the next master")
		}
		for _, f := range files {
			m.notify.say(notice{"FDSTORE=1\nFDNAME=" + storeName(c.Name), f})
		}
	}
}

// forgetSockets has those let go that no listener of this configuration has claimed:
// whoever connects to one would wait for ever.
func (m *master) forgetSockets(names []string) {
	for _, name := range names {
		m.notify.say(notice{text: "FDSTOREREMOVE=1\nFDNAME=" + name})
	}
}

// noteKept tells what became of the socket that was kept for a listener.
func (m *master) noteKept(c dispatcher.ListenerConfig, info dispatcher.ListenerInfo) {
	switch {
	case c.File == nil || c.Network == "fd":
	case info.Kept:
		m.log.Info().Str("event", "listener.kept").Str("listener", c.Name).Str("address", info.Address).
			Msg("its socket was kept while there was no master: who has queued up there is served")
	default:
		m.log.Warn().Str("event", "listener.kept").Str("listener", c.Name).Str("reason", "it is of another address").
			Msg("the socket that was kept for it is not used")
		m.releaseSockets([]dispatcher.ListenerConfig{c})
	}
}

// releaseSockets is called before the listeners are closed.
func (m *master) releaseSockets(list []dispatcher.ListenerConfig) {
	for _, c := range list {
		if c.Network != "fd" {
			m.notify.say(notice{text: "FDSTOREREMOVE=1\nFDNAME=" + storeName(c.Name)})
		}
	}
}

// maxStoreName is the most that systemd takes as FDNAME=.
const maxStoreName = 255

// storeName is the name of a listener as sd_pid_notify_with_fds(3) wants it: ASCII, no
// control characters, no colon.
func storeName(name string) string {
	if len(name) > maxStoreName {
		name = name[:maxStoreName]
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == ':' {
			return '_'
		}
		return r
	}, name)
}
