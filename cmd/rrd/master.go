//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// master joins the rooms. The pool starts processes and gives their channels to
// the dispatcher; the dispatcher tells which are ready, drained or broken; when
// the pool has seen one dead, the dispatcher takes back what it left.
type master struct {
	cfg     *config                 // as it was started; see current
	live    atomic.Pointer[config]  // as the last reload left it
	limits  sync.Mutex              // held while the dispatcher's are made those of live
	between atomic.Pointer[between] // the roll of one; nil: none is under way
	args    []string
	environ []string
	log     zerolog.Logger
	output  zerolog.Logger // of --worker-output json: it may wait, and must not push out rrd's own
	logs    *metrics.LogCounter
	stdout  io.Writer
	started time.Time
	flood   *floodgate
	// accepted is how many bytes stdout and stderr have taken.
	accepted func() uint64

	dispatcher *dispatcher.Dispatcher
	closeOnce  sync.Once // of the dispatcher
	pool       *pool.Pool
	listeners  []dispatcher.ListenerInfo // of the configuration; a reload's to change
	metricsAt  string

	notify     *notifier   // of the service manager; nil: there is none
	hooks      *hookRunner // the user's commands
	helpers    *helpers    // of the dispatcher
	duck       *lameDuck   // the way out of rotation
	ctl        *controls   // the control socket's
	draining   atomic.Bool // asked to stop, or only to leave rotation: not ready
	stopping   atomic.Bool // asked to stop
	hangup     hangup
	reloads    reloads
	rerolls    rerolls
	upgrades   upgrades
	program    string // the file that this program was started from
	workDir    *workDir
	resumed    *resumed     // what it was made of; nil: started afresh
	metricsLn  net.Listener // nil: none
	sink       *logSink
	saidSilent atomic.Bool       // of a Node worker
	lent       []dispatcher.Port // to workers, when the drain began
	lostBefore atomic.Uint64     // connections that died with their workers before the drain
	slots      sync.Map          // of each worker, an int by its ID: for the log

	stopRequest stopRequest // owned by the reader of the signals: supervise, then finishHooks

	mu        sync.Mutex
	wasReady  map[int]bool // by slot, once its first start is over
	announced bool
	failing   map[uint64]*time.Timer // by worker: whose health check fails; replaces it
}

// runMaster runs until everything it started has ended.
func runMaster(c *config, args, environ []string, stdout, stderr *os.File) int {
	hangup := noteHangup()
	signals := catchSignals() // from here on no signal ends the process untold
	defer signal.Stop(signals)
	activated := takeActivation(environ, os.Getpid())
	if err := pool.CloseOnExecAll(); err != nil {
		return fail(stderr, exitFailure, err)
	}
	atLeastTwoProcs()
	for _, check := range []func() error{c.checkBuiltIn, func() error { return fitBudget(c) }} {
		if err := check(); err != nil {
			activated.close()
			return fail(stderr, exitUsage, err)
		}
	}
	defer activated.close()
	if err := c.claim(activated); err != nil {
		return fail(stderr, exitUsage, err)
	}
	m := newMaster(c, args, environ, stdout, stderr)
	defer m.sink.close()
	m.hangup = hangup
	m.forgetSockets(activated.claimKept(c.Listen))
	return m.run(environ, signals, isTerminal(stdout), stderr)
}

// newMaster makes one that has no rooms yet. Its log is to be closed (sink).
func newMaster(c *config, args, environ []string, stdout, stderr *os.File) *master {
	counter := &metrics.LogCounter{}
	log, out := newSteadyWriter(stderr), newSteadyWriter(stdout)
	direct := &lockedWriter{w: log}
	gate := newLogGate(c.LogLevel, counter)
	gate.journal = toJournal(environ, stderr)
	output := newGatedLogger(direct, isTerminal(stderr), environ, c, gate, false)
	sink := newLogSink(direct, func(lines int64) {
		output.Warn().Str("event", "log.lost").Int64("lost", lines).Msg("so many records were lost: the log was not read")
	})
	direct.failed = sink.failed
	m := &master{
		sink: sink, accepted: func() uint64 { return log.accepted.Load() + out.accepted.Load() },
		program: programPath(), workDir: findWorkDir(environ), upgrades: upgrades{wanted: newWish()},
		cfg: c, args: args, environ: environ, logs: counter, stdout: out, started: time.Now(),
		log:      newGatedLogger(sink, isTerminal(stderr), environ, c, gate, true),
		output:   output,
		ctl:      newControls(gate),
		duck:     newLameDuck(),
		wasReady: make(map[int]bool),
		failing:  make(map[uint64]*time.Timer),
		rerolls:  rerolls{wanted: newWish()},
		reloads:  reloads{wanted: newWish(), lastOK: time.Now()},
	}
	m.flood = newFloodgate(m.leftOut)
	m.live.Store(c)
	m.notify = systemd(m.log)
	m.hooks = newHookRunner(m.log, environ)
	m.helpers = newHelpers(m)
	return m
}

// current is the configuration in force. What a reload cannot change may be read
// from cfg.
func (m *master) current() *config {
	if c := m.live.Load(); c != nil {
		return c
	}
	return m.cfg
}

func (m *master) run(environ []string, signals <-chan os.Signal, terminal bool, stderr *os.File) int {
	logWarnings(m.log, m.cfg)
	m.log.Info().Str("event", "start").Int("pid", os.Getpid()).Str("policy", string(m.cfg.Policy)).
		Str("reason", m.cfg.PolicyReason).Str("protocol", string(m.protocol())).Str("protocol_reason", m.cfg.ProtocolReason).
		Int("workers", m.cfg.Workers).Strs("command", m.cfg.Command).
		Msg("starting")
	if stopped, err := m.beforeStart(signals); err != nil {
		return fail(stderr, exitFailure, fmt.Errorf("--hook-before-start: %w (from %s)", err, m.cfg.origin("hook-before-start")))
	} else if stopped {
		return exitOK
	}
	var err error
	if m.dispatcher, err = dispatcher.New(m.dispatcherConfig()); err != nil {
		return fail(stderr, exitFailure, err)
	}
	defer m.closeDispatcher()
	if err := m.listen(); err != nil {
		return fail(stderr, exitFailure, err)
	}
	serveMetrics, err := m.openMetrics()
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	if m.pool, err = pool.New(m.poolConfig(environ)); err != nil {
		return fail(stderr, exitFailure, err)
	}
	m.hooks.start = m.pool.StartOther
	serveControl, err := m.openControl()
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	return m.serve(serveMetrics, serveControl, signals, terminal, stderr)
}

// serve runs the pool and everything beside it until it has ended.
func (m *master) serve(serveMetrics, serveControl func(context.Context), signals <-chan os.Signal, terminal bool, stderr *os.File) int {
	ctx, cancel := context.WithCancel(context.Background())
	var services sync.WaitGroup
	defer services.Wait()
	defer cancel()
	services.Go(func() { m.helpers.serve(ctx.Done()) })
	services.Go(func() { serveMetrics(ctx) })
	services.Go(func() { serveControl(ctx) })
	services.Go(func() { m.serveNotify(ctx) })
	ended := make(chan error, 1)
	services.Go(func() { ended <- m.pool.Run(context.Background()) })
	<-m.pool.Running() // an upgrade that was asked for before this image would be refused
	if terminal {
		m.banner()
	}
	services.Go(func() { m.reloadOnSignal(ctx) })
	services.Go(func() { m.rollForSockets(ctx) })
	services.Go(func() { m.watchControl(ctx) })
	services.Go(func() { m.upgradeOnSignal(ctx) })
	services.Go(func() { m.recycle(ctx) })
	finishHooks := m.startHooks(&services)
	err := m.supervise(signals, ended)
	finishHooks(signals)
	return m.exitCode(err, stderr)
}

// supervise acts on signals until the pool has ended.
func (m *master) supervise(signals <-chan os.Signal, ended <-chan error) error {
	var stopped sync.WaitGroup
	defer stopped.Wait()
	ctx, cutShort := context.WithCancel(context.Background())
	defer cutShort()
	stop := func(field, why string, now bool) {
		if now {
			cutShort()
			m.stopNow(field, why)
			return
		}
		if since, backC, first := m.leave(toStop); first {
			m.stopRequest = stopRequest{since: time.Now()}
			stopped.Go(func() { m.stopGracefully(ctx, since, backC, field, why) })
		}
	}
	failed := m.dispatcher.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-failed:
			failed = nil
			m.log.Error().Str("event", "dispatcher.failed").AnErr("error", m.dispatcher.Err()).Msg("dispatching has ended: stopping")
			m.pool.StopNow()
		case sig := <-signals:
			if !m.hangup.stops(sig) {
				m.heed(sig)
				break
			}
			switch m.judgeStop(sig) {
			case stopFirst:
				stop("signal", sig.String(), false)
			case stopAtOnce:
				stop("signal", sig.String(), true)
			case stopSame, stopRepeat:
			}
		case now := <-m.ctl.stopC:
			why := "rrdctl stop"
			if now {
				why += " --now"
			}
			stop("reason", why, now)
		}
	}
}

// leastDrain is what the workers get of the drain timeout if everything before
// has used it up.
const leastDrain = time.Second

// drain closes the listeners, waits until nothing waits for a worker, and then
// lets the workers finish, all within the drain timeout.
func (m *master) drain(ctx context.Context) {
	left := func() time.Duration { return off }
	if limit := m.current().DrainTimeout; limit != off {
		end := time.Now().Add(limit)
		left = func() time.Duration { return min(max(time.Until(end), leastDrain), limit) }
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	if stats, err := m.dispatcher.Stats(ctx); err == nil {
		m.lostBefore.Store(lostWithWorkers(stats))
	}
	m.noteLentPorts(ctx)
	m.releaseSockets(m.current().Listen)
	if err := m.dispatcher.Shutdown(ctx); err != nil {
		m.log.Warn().Str("event", "drain.cut").Err(err).Msg("connections were still waiting for a worker")
	}
	m.pool.StopWithin(left())
}

// exitCode says how the run ended, in the log and for who started us.
func (m *master) exitCode(err error, stderr io.Writer) int {
	code := exitOK
	var boot *pool.BootError
	switch {
	case errors.As(err, &boot):
		code = exitNotReady
		for _, f := range boot.Failures {
			m.log.Error().Str("event", "worker.boot_failed").Int("worker", f.Slot).Str("reason", f.String()).Msg("worker did not become ready")
		}
	case err != nil:
		code = exitFailure
	case m.dispatcher.Err() != nil:
		err, code = m.dispatcher.Err(), exitFailure
	}
	// A helper may still look at what the last workers have left.
	ctx, cancel := context.WithTimeout(context.Background(), helpersLeft)
	_ = m.dispatcher.AwaitRemovals(ctx) // the counts are of now then
	cancel()
	var lost uint64
	if stats, serr := m.dispatcher.Stats(context.Background()); serr == nil {
		for _, ln := range stats.Listeners {
			lost += uint64(ln.Queued+ln.InFlight) + ln.Dropped[dispatcher.DropShutdown]
		}
		lost += lostWithWorkers(stats) - m.lostBefore.Load()
	}
	m.noteLentPorts(context.Background())
	m.closeDispatcher() // here, for what it still drops is to be told before the last record
	m.flood.close()
	if err == nil {
		if err = keptPorts(m.lent); err != nil {
			code = exitFailure
		}
	}
	m.log.Info().Str("event", "stop").Int("exit_code", code).Uint64("connections_cut", lost).
		Float64("duration_s", time.Since(m.started).Seconds()).Msg("stopped")
	m.ctl.over(control.Stopped{ExitCode: code, Cut: lost, Seconds: time.Since(m.started).Seconds()})
	if err != nil {
		fail(stderr, code, err)
		if boot != nil && boot.LastWords() != "" {
			printLastWords(stderr, boot.LastWords())
		}
	}
	return code
}

// noteLentPorts notes the ports that workers have, before they close. Preconditions: the
// drain has ended, or calls it.
func (m *master) noteLentPorts(ctx context.Context) {
	if ports, err := m.dispatcher.LentPorts(ctx); err == nil {
		m.lent = append(m.lent, ports...)
	}
}

// lostWithWorkers counts the connections that were open in workers when they ended.
func lostWithWorkers(stats *dispatcher.Stats) (n uint64) {
	for i := range stats.Slots {
		n += stats.Slots[i].Lost
	}
	return n
}

func (m *master) closeDispatcher() {
	m.closeOnce.Do(func() {
		if err := m.dispatcher.Close(); err != nil {
			m.log.Error().Str("event", "dispatcher.failed").Err(err).Msg("dispatching had failed")
		}
		m.helpers.end()
	})
}

// printLastWords marks each line, so that none can pass for one of rrd's own.
func printLastWords(stderr io.Writer, words string) {
	var b strings.Builder
	b.WriteString("rrd: the last words of that worker:\n")
	for line := range strings.Lines(words) {
		fmt.Fprintf(&b, "rrd: | %s\n", plain(strings.TrimRight(line, "\r\n")))
	}
	writeInTime(stderr, b.String())
}

// listen opens what --listen names.
func (m *master) listen() error {
	for _, c := range m.cfg.Listen {
		if limit := dispatcher.Somaxconn(); c.Backlog > limit {
			m.log.Warn().Str("event", "listener.backlog").Str("listener", c.Name).Int("backlog", c.Backlog).Int("limit", limit).
				Msg("the kernel cuts this backlog to net.core.somaxconn")
		}
		info, err := m.dispatcher.Listen(c)
		if err != nil {
			for i := range m.cfg.Listen {
				if f := m.cfg.Listen[i].File; f != nil {
					_ = f.Close() // those that were not reached; closing twice is an error only
				}
			}
			return fmt.Errorf("--listen: %w%s (from %s)", err, bindAdvice(err), m.cfg.origin("listen"))
		}
		m.listeners = append(m.listeners, info)
		m.noteKept(c, info)
	}
	m.keepSockets(m.cfg.Listen)
	return nil
}

// bindAdvice says what to do about an address that could not be bound, after a
// colon, or nothing.
func bindAdvice(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ": stop whoever is there, or choose another"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": this machine has no such address, choose another"
	case errors.Is(err, syscall.EACCES):
		return ": ports below 1024 take root or CAP_NET_BIND_SERVICE, and a socket's directory must be writable"
	}
	return ""
}

// openMetrics returns what serves the metrics until its context ends. A default
// address that is taken is only a warning: another rrd may have it.
func (m *master) openMetrics() (serve func(context.Context), err error) {
	at := m.cfg.Metrics
	if at.Network == "" {
		return func(context.Context) {}, nil
	}
	ln, err := metrics.Listen(at.Network, at.Address)
	if err != nil {
		if m.cfg.explicit("metrics") {
			return nil, fmt.Errorf("--metrics: %w%s (from %s)", err, bindAdvice(err), m.cfg.origin("metrics"))
		}
		m.log.Warn().Str("event", "metrics.unavailable").Str("address", at.Address).Err(err).
			Msg("going on without metrics; --metrics names another address")
		return func(context.Context) {}, nil
	}
	m.metricsAt = ln.Addr().String()
	if at.Network == "unix" {
		m.metricsAt = "unix:" + at.Address
	}
	m.log.Info().Str("event", "metrics.open").Str("address", m.metricsAt).Msg("metrics")
	m.metricsLn = ln
	return m.metricsServer(ln), nil
}

// metricsServer returns what serves the metrics on ln until its context ends.
func (m *master) metricsServer(ln net.Listener) func(context.Context) {
	server := metrics.NewServer(
		metrics.New(metrics.Config{Source: m.snapshot, Build: buildInfo(), Logs: m.logs}),
		metrics.ServerConfig{})
	return func(ctx context.Context) {
		if err := server.Serve(ctx, ln); err != nil && !errors.Is(err, net.ErrClosed) {
			m.log.Error().Str("event", "metrics.failed").Err(err).Msg("metrics are not served any more")
		}
	}
}

// banner tells a newcomer at a terminal what is going on.
func (m *master) banner() {
	what := "the built-in worker"
	if !m.cfg.builtIn() {
		what = fmt.Sprintf("%q", m.cfg.Command)
	}
	fmt.Fprintf(m.stdout, "rrd: %d workers run %s, policy %s\n", m.cfg.Workers, what, m.cfg.Policy)
	for _, ln := range m.listeners {
		switch {
		case ln.Network == "unix":
			fmt.Fprintf(m.stdout, "rrd: try  curl --unix-socket %s http://localhost/\n", ln.Address)
		case m.cfg.builtIn():
			fmt.Fprintf(m.stdout, "rrd: try  curl http://%s/   (again and again: the workers take turns)\n", ln.Address)
		default:
			fmt.Fprintf(m.stdout, "rrd: listening on %s %s\n", ln.Network, ln.Address)
		}
	}
	if m.metricsAt != "" {
		fmt.Fprintf(m.stdout, "rrd: metrics at http://%s/metrics, state at /status.json\n", m.metricsAt)
	}
	fmt.Fprintf(m.stdout, "rrd: Ctrl-C stops it, losing nobody; rrd --help shows the rest\n")
}

// lockedWriter keeps the lines of two loggers apart.
type lockedWriter struct {
	mu     sync.Mutex
	w      io.Writer
	failed func() // called for each write that fails; or nil
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.w.Write(p)
	if err != nil && l.failed != nil {
		l.failed()
	}
	return n, err
}
