//go:build unix

package control

import (
	"encoding/json"
	"time"
)

// The commands. docs/control.md has them in this order.
const (
	CmdStatus         = "status"
	CmdWorkersList    = "workers.list"
	CmdWorkersSet     = "workers.set"
	CmdWorkersInc     = "workers.inc"
	CmdWorkersDec     = "workers.dec"
	CmdWorkersRestart = "workers.restart"
	CmdWorkersDrain   = "workers.drain"
	CmdWorkersUndrain = "workers.undrain"
	CmdWorkersKill    = "workers.kill"
	CmdWorkersSignal  = "workers.signal"
	CmdWorkersDump    = "workers.dump"
	CmdReload         = "reload"
	CmdUpgrade        = "upgrade"
	CmdDrain          = "drain"
	CmdUndrain        = "undrain"
	CmdStop           = "stop"
	CmdConfigShow     = "config.show"
	CmdConfigCheck    = "config.check"
	CmdLogLevel       = "log.level"
	CmdEventsRecent   = "events.recent"
	CmdEventsFollow   = "events.follow"
	CmdGoroutines     = "debug.goroutines"
	CmdFDs            = "debug.fds"
	CmdTrace          = "debug.trace"
)

// Command describes a command: what Args it takes and what its result is, nil for
// none. Both are values of the types below, for who documents them.
type Command struct {
	Name         string
	Args, Result any
}

// Commands lists every command of this version.
func Commands() []Command {
	return []Command{
		{CmdStatus, nil, Status{}},
		{CmdWorkersList, nil, Workers{}},
		{CmdWorkersSet, SetArgs{}, Resized{}},
		{CmdWorkersInc, nil, Resized{}},
		{CmdWorkersDec, nil, Resized{}},
		{CmdWorkersRestart, SlotArgs{}, Workers{}},
		{CmdWorkersDrain, SlotArgs{}, Workers{}},
		{CmdWorkersUndrain, SlotArgs{}, Workers{}},
		{CmdWorkersKill, SlotArgs{}, Killed{}},
		{CmdWorkersSignal, SignalArgs{}, Signalled{}},
		{CmdWorkersDump, SlotsArgs{}, nil},
		{CmdReload, ReloadArgs{}, nil},
		{CmdUpgrade, nil, Upgraded{}},
		{CmdDrain, DrainArgs{}, Drained{}},
		{CmdUndrain, nil, nil},
		{CmdStop, StopArgs{}, Stopped{}},
		{CmdConfigShow, nil, Config{}},
		{CmdConfigCheck, CheckArgs{}, Config{}},
		{CmdLogLevel, LevelArgs{}, Level{}},
		{CmdEventsRecent, nil, Events{}},
		{CmdEventsFollow, FollowArgs{}, nil},
		{CmdGoroutines, nil, Goroutines{}},
		{CmdFDs, nil, FDs{}},
		{CmdTrace, TraceArgs{}, Traced{}},
	}
}

// SetArgs are those of workers.set.
type SetArgs struct {
	Workers int `json:"workers"`
}

// SlotArgs name one slot.
type SlotArgs struct {
	Slot *int `json:"slot"`
}

// SlotsArgs name one slot or all; exactly one of the two is given.
type SlotsArgs struct {
	Slot *int `json:"slot,omitempty"`
	All  bool `json:"all,omitempty"`
}

// SignalArgs are those of workers.signal. Signal is a name without SIG, as TERM.
type SignalArgs struct {
	Signal string `json:"signal"`
	Slot   *int   `json:"slot,omitempty"`
	All    bool   `json:"all,omitempty"`
}

// ReloadArgs are those of reload. The result comes when all
// workers are rolled, whatever Wait says.
type ReloadArgs struct {
	Wait bool `json:"wait,omitempty"`
}

// DrainArgs are the arguments of drain. Close closes the listeners, for good.
type DrainArgs struct {
	Close bool `json:"close,omitempty"`
}

// StopArgs are those of stop. With Now workers are killed at once.
type StopArgs struct {
	Now bool `json:"now,omitempty"`
}

// CheckArgs are those of config.check. Path is absolute, and read by the master.
type CheckArgs struct {
	Path string `json:"path"`
}

// LevelArgs are those of log.level: debug, info, warn or error; empty only asks.
type LevelArgs struct {
	Level string `json:"level,omitempty"`
}

// FollowArgs are those of events.follow. Recent events come first, at most as
// many as the master keeps.
type FollowArgs struct {
	Recent int `json:"recent,omitempty"`
}

// TraceArgs are those of debug.trace.
type TraceArgs struct {
	Seconds int `json:"seconds"`
}

// Status is the whole state of a master, of one instant.
type Status struct {
	Version      string    `json:"version"`
	Revision     string    `json:"revision,omitempty"`
	PID          int       `json:"pid"`
	Time         time.Time `json:"time"`
	Started      time.Time `json:"started"`
	Policy       string    `json:"policy"`
	PolicyReason string    `json:"policy_reason,omitempty"`
	// Ready is that of /-/ready; Reason says why not.
	Ready    bool   `json:"ready"`
	Reason   string `json:"reason,omitempty"`
	Draining bool   `json:"draining"`
	// LameDuck: out of rotation, and new connections are still served.
	LameDuck bool `json:"lame_duck,omitempty"`
	// Stopping: the master was asked to end.
	Stopping bool   `json:"stopping"`
	Control  string `json:"control,omitempty"`
	Metrics  string `json:"metrics,omitempty"`
	LogLevel string `json:"log_level"`
	// Reload says how the last reload went; nil: there was none.
	Reload *Reload `json:"reload,omitempty"`

	// Upgrade says how upgrades in place went; nil: there was none.
	Upgrade *Upgrade `json:"upgrade,omitempty"`

	QueueLimit   int               `json:"queue_limit"`
	Desired      int               `json:"workers_desired"`
	Listeners    []ListenerStatus  `json:"listeners"`
	Workers      []WorkerStatus    `json:"workers"`
	Redispatches map[string]uint64 `json:"redispatches,omitempty"`
	// Helpers are the processes that make calls for rrd which may wait for a worker.
	Helpers []HelperStatus `json:"helpers,omitempty"`
	// Dispatch is the time from accept to ack.
	Dispatch Histogram `json:"dispatch_duration"`
}

// HelperStatus is one helper process.
type HelperStatus struct {
	PID int `json:"pid"`
	// Busy is the age of its call in seconds; 0: no call is under way.
	Busy float64 `json:"busy_s,omitempty"`
}

// Reload is the outcome of the last reload.
type Reload struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// LastSuccess is when the configuration in force was read.
	LastSuccess time.Time `json:"last_success"`
}

// Upgraded is the program that goes on, as an upgrade's result.
type Upgraded struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
}

// Upgrade counts upgrades in place. Error says why the last one failed; "": it did not.
type Upgrade struct {
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
	Error  string `json:"error,omitempty"`
}

// ListenerStatus is one listener with its law: accepted + rescued = acked + dropped +
// queued + in flight.
type ListenerStatus struct {
	Name        string            `json:"name"`
	Network     string            `json:"network"`
	Address     string            `json:"address"`
	Shared      bool              `json:"shared"`
	Paused      bool              `json:"paused"`
	Accepted    uint64            `json:"accepted"`
	Acked       uint64            `json:"acked"`
	Rescued     uint64            `json:"rescued"`
	Dropped     map[string]uint64 `json:"dropped,omitempty"`
	Queued      int               `json:"queued"`
	InFlight    int               `json:"in_flight"`
	LawHolds    bool              `json:"law_holds"`
	Rearmed     uint64            `json:"rearmed,omitempty"`
	Unreachable string            `json:"unreachable,omitempty"` // why no client can connect
	KernelQueue *KernelQueue      `json:"kernel_queue,omitempty"`
}

// KernelQueue is what the kernel holds for accept(2).
type KernelQueue struct {
	Length int    `json:"length"`
	Limit  int    `json:"limit"`
	Drops  uint64 `json:"drops"`
}

// WorkerStatus is one slot. Counts are of the slot, over all its processes; the rest is
// of its newest process. Times are seconds.
type WorkerStatus struct {
	Slot       int     `json:"slot"`
	PID        int     `json:"pid,omitempty"` // 0: no process
	Generation int     `json:"generation,omitempty"`
	State      string  `json:"state"`
	Held       bool    `json:"held,omitempty"` // by workers.drain
	Late       bool    `json:"late,omitempty"` // gets nothing until it answers, see --busy-after
	Uptime     float64 `json:"uptime_seconds,omitempty"`
	Handoffs   uint64  `json:"handoffs"`
	Acks       uint64  `json:"acks"`
	InFlight   int     `json:"in_flight"`
	Active     *int    `json:"connections_active,omitempty"` // where it reports closes
	Rejections uint64  `json:"rejections"`
	Failures   uint64  `json:"failures"`
	Restarts   uint64  `json:"restarts"`
	Backoff    float64 `json:"respawn_backoff_seconds,omitempty"`
	LastExit   string  `json:"last_exit,omitempty"`
	// Heard is how long ago it last said something; nil: never, or it has no channel.
	Heard *float64 `json:"heard_seconds,omitempty"`
	// CPU, RSS and FDs are what /proc tells of the process; nil where it does not.
	CPU *float64 `json:"cpu_seconds,omitempty"`
	RSS *uint64  `json:"rss_bytes,omitempty"`
	FDs *int     `json:"open_fds,omitempty"`
	// Others are processes of the slot beside its newest one.
	Others []OtherProcess `json:"others,omitempty"`
}

// OtherProcess is one that does not work in its slot any more, or not yet. Name
// is SLOT.GENERATION.
type OtherProcess struct {
	Name   string  `json:"name"`
	PID    int     `json:"pid"`
	State  string  `json:"state"`
	Uptime float64 `json:"uptime_seconds"`
}

// Histogram counts observations: Counts[i] those up to Bounds[i] seconds and
// above the bound before; the last count is of those above all bounds.
type Histogram struct {
	Bounds []float64 `json:"bounds"`
	Counts []uint64  `json:"counts"`
}

// Workers is the result of workers.list, and of what is done with one slot.
type Workers struct {
	Policy  string         `json:"policy"`
	Desired int            `json:"workers_desired"`
	Workers []WorkerStatus `json:"workers"`
}

// Resized is the result of what changes the number of workers.
type Resized struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// SlotEvent tells what a slot has become while a verb waits. Without a process
// Reason says how the last one ended.
type SlotEvent struct {
	Slot       int    `json:"slot"`
	State      string `json:"state"` // those of WorkerStatus, and StateGone
	PID        int    `json:"pid,omitempty"`
	Generation int    `json:"generation,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// StateGone is a slot that is no more.
const StateGone = "gone"

// Killed is the result of workers.kill.
type Killed struct {
	Slot int `json:"slot"`
	PID  int `json:"pid"`
}

// Signalled is the result of workers.signal: the processes that got it.
type Signalled struct {
	Signal  string   `json:"signal"`
	Workers []Killed `json:"workers"`
}

// Drained is the result of drain. Open is how many connections wait, are unanswered or are
// open in workers: at once, or with Close when nothing is open or its time is over.
type Drained struct {
	Open    int     `json:"connections_open"`
	Seconds float64 `json:"duration_s"`
}

// Stopped is the result of stop. The process ends right after it.
type Stopped struct {
	ExitCode int     `json:"exit_code"`
	Cut      uint64  `json:"connections_cut"`
	Seconds  float64 `json:"duration_s"`
}

// Config is a configuration with origins.
type Config struct {
	Command  []string  `json:"command"` // none: the built-in worker
	Settings []Setting `json:"settings"`
	Warnings []string  `json:"warnings,omitempty"`
}

// Setting is one value as it was written, and where: "flag", "RRD_X", "FILE:LINE"
// or "default". Meaning is what auto came to. Of env only the names are there.
type Setting struct {
	Name    string   `json:"name"`
	Values  []string `json:"values"`
	Origin  string   `json:"origin"`
	Meaning string   `json:"meaning,omitempty"`
}

// Level is the result of log.level.
type Level struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Events is the result of events.recent: records of the log, oldest first.
type Events struct {
	Events []json.RawMessage `json:"events"`
}

// Lost is the event that stands for those that a slow follower did not get.
type Lost struct {
	Event string `json:"event"` // EventsLost
	Lost  uint64 `json:"lost"`
}

// EventsLost is the name of the event Lost.
const EventsLost = "events.lost"

// Goroutines is the result of debug.goroutines; the stacks come before, as events
// Text.
type Goroutines struct {
	Goroutines int `json:"goroutines"`
}

// Text is a piece of a longer text, as an event.
type Text struct {
	Text string `json:"text"`
}

// Data is a piece of binary data, as an event; in base64 on the wire.
type Data struct {
	Data []byte `json:"data"`
}

// FDs is the result of debug.fds.
type FDs struct {
	FDs []FD `json:"fds"`
}

// FD is one descriptor of the master.
type FD struct {
	FD     int    `json:"fd"`
	Kind   string `json:"kind"`
	Target string `json:"target"`
}

// Traced is the result of debug.trace; the trace comes before, as events Data.
type Traced struct {
	Bytes   int     `json:"bytes"`
	Seconds float64 `json:"duration_s"`
}
