//go:build unix

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/rs/zerolog"

	"rrd/cmd/internal/control"
	"rrd/worker/pool"
)

// operator is what the control socket can have done: the master, or in a test
// none. Methods that take long return when it is done; where they take a context
// its end only ends the waiting. progress may be called until they return.
type operator interface {
	Snapshot() pool.Snapshot
	Status(ctx context.Context) control.Status
	Workers(ctx context.Context) control.Workers
	Events() *eventHub
	Log() *logGate
	// Note writes into the log who has asked for what.
	Note(cmd string, p control.Peer)
	// Over is closed when the master has nothing left but to end, which Stop
	// tells about.
	Over() <-chan struct{}

	Resize(n int) error
	Grow() (int, error)
	Shrink() (int, error)
	Kill(worker uint64, reason string)
	Signal(slot int, sig syscall.Signal) error
	Restart(slot int) error
	DrainSlot(slot int) error
	UndrainSlot(slot int) error
	Dump(slot int) (string, error)

	Reload(ctx context.Context, progress func(any)) error
	// Upgrade returns only if it fails: else asked is answered by the next image.
	Upgrade(ctx context.Context, asked control.Crossing) error
	Drain() (control.Drained, error)
	DrainAndClose(ctx context.Context) (control.Drained, error)
	Undrain() error
	Stop(ctx context.Context, now bool) (control.Stopped, error)

	Config() control.Config
	CheckConfig(path string) (control.Config, error)
}

// controlHandler answers the requests of the control socket.
type controlHandler struct{ op operator }

// call is one request.
type call struct {
	ctx  context.Context
	op   operator
	peer control.Peer
	req  control.Request
	emit func(any) error
}

// controlCommands says what to do for each command. Those that change something
// are noted in the log.
var controlCommands = map[string]struct {
	do      func(*call) (any, error)
	changes bool
}{
	control.CmdStatus:         {do: (*call).status},
	control.CmdWorkersList:    {do: (*call).workersList},
	control.CmdWorkersSet:     {(*call).workersSet, true},
	control.CmdWorkersInc:     {(*call).workersInc, true},
	control.CmdWorkersDec:     {(*call).workersDec, true},
	control.CmdWorkersRestart: {(*call).workersRestart, true},
	control.CmdWorkersDrain:   {(*call).workersDrain, true},
	control.CmdWorkersUndrain: {(*call).workersUndrain, true},
	control.CmdWorkersKill:    {(*call).workersKill, true},
	control.CmdWorkersSignal:  {(*call).workersSignal, true},
	control.CmdWorkersDump:    {do: (*call).workersDump},
	control.CmdReload:         {(*call).reload, true},
	control.CmdUpgrade:        {(*call).upgrade, true},
	control.CmdDrain:          {(*call).drain, true},
	control.CmdUndrain:        {(*call).undrain, true},
	control.CmdStop:           {(*call).stop, true},
	control.CmdConfigShow:     {do: (*call).configShow},
	control.CmdConfigCheck:    {do: (*call).configCheck},
	control.CmdLogLevel:       {(*call).logLevel, true},
	control.CmdEventsRecent:   {do: (*call).eventsRecent},
	control.CmdEventsFollow:   {do: (*call).eventsFollow},
	control.CmdGoroutines:     {do: (*call).goroutines},
	control.CmdFDs:            {do: (*call).fds},
	control.CmdTrace:          {do: (*call).trace},
}

// Handle implements control.Handler.
func (h controlHandler) Handle(ctx context.Context, p control.Peer, r control.Request, emit func(any) error) (any, error) {
	cmd, ok := controlCommands[r.Cmd]
	if !ok {
		return nil, control.Errorf(control.CodeUnknown, "%q is no command of this rrd", r.Cmd)
	}
	if cmd.changes {
		h.op.Note(r.Cmd, p)
	}
	return cmd.do(&call{ctx, h.op, p, r, emit})
}

// args fills args; none is what commands without Args have.
func (c *call) args(args any) error { return control.DecodeArgs(c.req.Args, args) }

func (c *call) noArgs() error { return c.args(&struct{}{}) }

func (c *call) status() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return c.op.Status(c.ctx), nil
}

func (c *call) workersList() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return c.op.Workers(c.ctx), nil
}

func (c *call) workersSet() (any, error) {
	var a control.SetArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	if a.Workers < 1 || a.Workers > pool.MaxSize {
		return nil, control.Errorf(control.CodeUsage, "workers: %d is not from 1 to %d", a.Workers, pool.MaxSize)
	}
	return c.resize(func() (int, error) { return a.Workers, c.op.Resize(a.Workers) })
}

func (c *call) workersInc() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return c.resize(c.op.Grow)
}

func (c *call) workersDec() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return c.resize(c.op.Shrink)
}

// slot decodes args that name one slot, which must be there.
func (c *call) slot() (int, error) {
	var a control.SlotArgs
	if err := c.args(&a); err != nil {
		return 0, err
	}
	if a.Slot == nil {
		return 0, control.Errorf(control.CodeUsage, `args have no "slot"`)
	}
	return *a.Slot, c.checkSlot(*a.Slot)
}

func (c *call) checkSlot(slot int) error {
	if s := c.op.Snapshot(); findSlot(s, slot) == nil {
		return control.Errorf(control.CodeUsage, "there is no slot %d: they are 0 to %d", slot, s.Desired-1)
	}
	return nil
}

// slots decodes what may name one slot or all.
func (c *call) slots(slot *int, all bool) ([]int, error) {
	if (slot != nil) == all {
		return nil, control.Errorf(control.CodeUsage, `args need either "slot" or "all"`)
	}
	if slot != nil {
		return []int{*slot}, c.checkSlot(*slot)
	}
	var slots []int
	for _, s := range c.op.Snapshot().Slots {
		if s.PID > 0 {
			slots = append(slots, s.Slot)
		}
	}
	return slots, nil
}

// workersRestart waits until the successor has taken the place.
func (c *call) workersRestart() (any, error) {
	slot, err := c.slot()
	if err != nil {
		return nil, err
	}
	if err := c.during(func() error { return c.op.Restart(slot) }, only(slot)); err != nil {
		return nil, err
	}
	return c.slotNow(slot), nil
}

// slotNow is the result of what was done with a slot.
func (c *call) slotNow(slot int) control.Workers {
	w := c.op.Workers(c.ctx)
	w.Workers = slices.DeleteFunc(w.Workers, func(w control.WorkerStatus) bool { return w.Slot != slot })
	return w
}

func (c *call) workersSignal() (any, error) {
	var a control.SignalArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(strings.ToUpper(a.Signal), "SIG")
	sig, ok := workerSignals[name]
	if !ok {
		return nil, control.Errorf(control.CodeUsage, "signal: %q is not one of %s", a.Signal, strings.Join(signalNames(), ", "))
	}
	slots, err := c.slots(a.Slot, a.All)
	if err != nil {
		return nil, err
	}
	result := control.Signalled{Signal: name}
	for _, slot := range slots {
		pid := 0
		if s := findSlot(c.op.Snapshot(), slot); s != nil {
			pid = s.PID
		}
		if err := c.op.Signal(slot, sig); err != nil {
			if a.All {
				continue // it has ended just now
			}
			return nil, err
		}
		result.Workers = append(result.Workers, control.Killed{Slot: slot, PID: pid})
	}
	return result, nil
}

// workerSignals are those that can be sent; what they do is the worker's affair.
var workerSignals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "ABRT": syscall.SIGABRT, "KILL": syscall.SIGKILL,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "ALRM": syscall.SIGALRM, "TERM": syscall.SIGTERM,
	"CONT": syscall.SIGCONT, "STOP": syscall.SIGSTOP, "WINCH": syscall.SIGWINCH, "TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU,
}

func signalNames() (names []string) {
	for name := range workerSignals {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (c *call) workersDump() (any, error) {
	var a control.SlotsArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	slots, err := c.slots(a.Slot, a.All)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		text, err := c.op.Dump(slot)
		if err != nil {
			return nil, err
		}
		if err := c.emitText(text); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (c *call) reload() (any, error) {
	var a control.ReloadArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	// Who no longer waits must not leave it half done.
	return nil, c.during(func() error { return c.op.Reload(context.WithoutCancel(c.ctx), c.progress) }, none)
}

func (c *call) upgrade() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	asked := c.req.Cross()
	return nil, c.during(func() error { return c.op.Upgrade(context.WithoutCancel(c.ctx), asked) }, none)
}

// progress is emit for who does not stop because nobody listens.
func (c *call) progress(event any) { _ = c.emit(event) }

func (c *call) drain() (any, error) {
	var a control.DrainArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	if !a.Close {
		result, err := c.op.Drain()
		if err != nil { // else result is written
			return nil, err
		}
		return result, nil
	}
	var result control.Drained
	err := c.during(func() (err error) {
		result, err = c.op.DrainAndClose(context.WithoutCancel(c.ctx)) // it goes on when no client waits
		return err
	}, none)
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c *call) undrain() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return nil, c.op.Undrain()
}

func (c *call) stop() (any, error) {
	var a control.StopArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	var result control.Stopped
	err := c.during(func() (err error) {
		result, err = c.op.Stop(c.ctx, a.Now)
		return err
	}, nil)
	if err != nil { // else result is written: see during
		return nil, err
	}
	return result, nil
}

func (c *call) configShow() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return c.op.Config(), nil
}

// configCheck has the master read a file, which takes who may read it anyway.
func (c *call) configCheck() (any, error) {
	var a control.CheckArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(a.Path, "/") {
		return nil, control.Errorf(control.CodeUsage, "path: %q is not absolute", a.Path)
	}
	if !ownPeer(c.peer) {
		return nil, control.Errorf(control.CodeRefused, "only root and the user of rrd may have it read a file, and you are uid %d", c.peer.UID)
	}
	return c.op.CheckConfig(a.Path)
}

func (c *call) logLevel() (any, error) {
	var a control.LevelArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	gate := c.op.Log()
	from := gate.get()
	to := from
	if a.Level != "" {
		var name string
		if err := choice(&name, a.Level, logLevels); err != nil {
			return nil, control.Errorf(control.CodeUsage, "level: %v", err)
		}
		var err error
		if to, err = zerolog.ParseLevel(name); err != nil {
			return nil, err
		}
		gate.set(to)
	}
	return control.Level{From: from.String(), To: to.String()}, nil
}

func (c *call) eventsRecent() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	return control.Events{Events: c.op.Events().last(keptEvents)}, nil
}

// eventsFollow ends with the client, or with the master.
func (c *call) eventsFollow() (any, error) {
	var a control.FollowArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	recent, f := c.op.Events().follow(a.Recent)
	defer f.close()
	for _, record := range recent {
		if err := c.emit(record); err != nil {
			return nil, err
		}
	}
	for {
		if err := c.emitLost(f); err != nil {
			return nil, err
		}
		select {
		case record := <-f.events:
			if err := c.emit(record); err != nil {
				return nil, err
			}
			continue
		default: // what has come is told before the end is
		}
		select {
		case record := <-f.events:
			if err := c.emit(record); err != nil {
				return nil, err
			}
		case <-c.ctx.Done():
			return nil, nil
		}
	}
}

// emitLost tells a follower what it has missed: as soon as it reads again, and so
// somewhat before the place where it is missing.
func (c *call) emitLost(f *follower) error {
	if n := f.lost.Swap(0); n > 0 {
		return c.emit(control.Lost{Event: control.EventsLost, Lost: n})
	}
	return nil
}

// emitText sends a text in pieces.
func (c *call) emitText(text string) error {
	const piece = 32 << 10
	for len(text) > 0 {
		n := min(piece, len(text))
		if err := c.emit(control.Text{Text: strings.ToValidUTF8(text[:n], "?")}); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

func findSlot(s pool.Snapshot, slot int) *pool.SlotStatus {
	for i := range s.Slots {
		if s.Slots[i].Slot == slot {
			return &s.Slots[i]
		}
	}
	return nil
}

func slotName(slot int) string { return fmt.Sprintf("slot %d", slot) }
