//go:build unix

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/handoff/node"
	"rrd/metrics"
	"rrd/worker/pool"
)

// stateVersion is that of the whole state. Within one, fields may be added: who
// does not know them ignores them, who misses them takes zero.
const stateVersion = 1

var stateMagic = [8]byte{'R', 'R', 'D', 'S', 'T', 'A', 'T', 'E'}

const (
	stateHeader = len(stateMagic) + 8 + 8 + sha256.Size // magic, version, length, checksum
	maxState    = 1 << 30
)

// knownNeeds are the features that a state may need and this program has. A program without
// such a feature would end workers for messages that its predecessor had allowed.
var knownNeeds = []string{needTickets}

// needTickets: a worker was offered keys for TLS session tickets.
const needTickets = "tickets"

// savedMaster is what crosses an upgrade in place.
type savedMaster struct {
	// Needs names features in use.
	Needs []string `json:",omitempty"`
	// Program is the version that wrote it, Path the file that it was started from.
	Program string
	Path    string
	// WorkDir is the name of the working directory; "": not known to who wrote it.
	WorkDir string
	// Args are the words of the command line. Settings and Command are the
	// configuration in force, as it was written; the limits are what became of theirs.
	Args                    []string
	Settings                map[string]savedSetting
	Command                 []string
	QueueLimit, RescueLimit int
	// What "auto" has come to. It is not judged anew: the workers are of that kind.
	Policy                       dispatcher.Policy
	Protocol                     pool.Protocol
	PolicyReason, ProtocolReason string
	Workers                      int

	Age        time.Duration
	LameDuck   time.Duration // how long it has been out of rotation; 0: it is in rotation
	Listeners  []dispatcher.ListenerInfo
	Dispatcher *dispatcher.State
	Helpers    []int // pids of the dispatcher's helpers, to be reaped
	Pool       *pool.SavedState

	Metrics     handoff.FD
	MetricsAt   string
	Control     handoff.FD
	ControlAt   string
	ControlMade string
	ControlFile control.FileID // zero: an older image did not tell
	OldImage    handoff.FD

	// Asked is the request for this upgrade, Asker the connection that it came on. None: it
	// was a signal, or the client has left.
	Asked control.Crossing
	Asker handoff.FD

	// Events are the last records of the log, for rrdctl events.
	Events     []json.RawMessage `json:",omitempty"`
	LogLevel   string
	LogCounts  map[string]uint64
	Requests   []metrics.ControlRequests
	Reloads    metrics.Reloads
	Upgrades   metrics.Upgrades
	WasReady   map[int]bool
	Announced  bool
	SaidSilent bool

	Hangup hangup

	// HUP, or another USR2, came meanwhile.
	ReloadAsked, UpgradeAsked bool
	RollAsked                 bool // workers share a listening socket that was replaced

	TookSeconds float64 // that the old image spent on it so far
}

// savedSetting is a setting as it was written, and where.
type savedSetting struct {
	Values []string
	Origin string
}

// config is the configuration in force. The file is not read again: it may have been
// changed and not reloaded.
func (s *savedMaster) config(environ []string) (*config, error) {
	c := &config{settings: map[string]setValue{}, Command: s.Command, environ: environ}
	h := thisHost()
	for i := range settings {
		set := &settings[i]
		v := setValue{values: set.def, origin: fromDefault} // unknown to who wrote the state
		if was, ok := s.Settings[set.name]; ok {
			v = setValue{was.Values, was.Origin}
		}
		c.settings[set.name] = v
		if set.apply == nil || len(v.values) == 0 {
			continue
		}
		if err := set.apply(h, c, v.values); err != nil {
			return nil, located(set.name, v.origin, err)
		}
	}
	if s.Policy != "" { // who wrote it knew of these
		c.Policy, c.PolicyReason, c.WorkerProtocol, c.Workers = s.Policy, s.PolicyReason, s.Protocol, s.Workers
		h.passDescriptors = func() error { return nil }                    // it can, or need not
		h.program = func(path string) (string, string) { return path, "" } // and is no matter any more
	}
	if err := c.finish(h); err != nil {
		return nil, err
	}
	if s.Policy != "" {
		c.WorkerProtocol, c.ProtocolReason = s.Protocol, s.ProtocolReason
	}
	c.QueueLimit, c.RescueLimit, c.Warnings = s.QueueLimit, s.RescueLimit, nil
	return c, nil
}

// fds are all descriptors in it.
func (s *savedMaster) fds() (fds []handoff.FD) {
	for _, d := range []handoff.FD{s.Metrics, s.Control, s.OldImage, s.Asker} {
		if d.Valid() {
			fds = append(fds, d)
		}
	}
	return slices.Concat(fds, s.Dispatcher.FDs(), s.Pool.FDs())
}

// encode writes s as it stands in the memory file.
func (s *savedMaster) encode() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	b := make([]byte, stateHeader, stateHeader+len(text))
	copy(b, stateMagic[:])
	binary.LittleEndian.PutUint64(b[8:], stateVersion)
	binary.LittleEndian.PutUint64(b[16:], uint64(len(text)))
	sum := sha256.Sum256(text)
	copy(b[24:], sum[:])
	return append(b, text...), nil
}

// decodeState reads what encode has written. It opens and closes nothing.
func decodeState(b []byte) (*savedMaster, error) {
	if len(b) < stateHeader || !bytes.Equal(b[:8], stateMagic[:]) {
		return nil, errors.New("it is no state of rrd")
	}
	if v := binary.LittleEndian.Uint64(b[8:]); v != stateVersion {
		return nil, fmt.Errorf("it is of state version %d, and this rrd (%s) reads version %d", v, programVersion(), stateVersion)
	}
	n := binary.LittleEndian.Uint64(b[16:])
	text := b[stateHeader:]
	if n > maxState || uint64(len(text)) != n {
		return nil, fmt.Errorf("it is %d bytes long instead of %d", len(text), n)
	}
	if sum := sha256.Sum256(text); !bytes.Equal(sum[:], b[24:stateHeader]) {
		return nil, errors.New("its checksum is wrong")
	}
	var s savedMaster
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	if s.Dispatcher == nil || s.Pool == nil {
		return nil, errors.New("it lacks a part")
	}
	for _, need := range s.Needs {
		if !slices.Contains(knownNeeds, need) {
			return nil, fmt.Errorf("it needs %q, which this rrd (%s) does not have: restart instead", need, programVersion())
		}
	}
	return &s, nil
}

// agrees says why c cannot go on with s: what c would do otherwise than the master
// that wrote s takes a reload or a restart.
func (s *savedMaster) agrees(c *config) error {
	var other []string
	for name, v := range c.settings {
		if was, ok := s.Settings[name]; ok && !slices.Equal(was.Values, v.values) && (was.Origin != fromDefault || v.origin != fromDefault) {
			other = append(other, name)
		}
	}
	slices.Sort(other)
	switch {
	case len(other) > 0:
		return fmt.Errorf("the configuration was changed and not reloaded yet (%s): reload first", strings.Join(other, ", "))
	case !slices.Equal(s.Command, c.Command):
		return fmt.Errorf("the command was changed and not reloaded yet (%q, was %q): reload first", c.Command, s.Command)
	}
	return nil
}

// written are the settings as they were written.
func (c *config) written() map[string]savedSetting {
	w := make(map[string]savedSetting, len(c.settings))
	for name, v := range c.settings {
		w[name] = savedSetting{v.values, v.origin}
	}
	return w
}

// savedChannel is a channel of either dialect.
type savedChannel struct {
	Native *handoff.ConnState `json:",omitempty"`
	Node   *node.State        `json:",omitempty"`
}

// codec is how channels cross.
func (m *master) codec() dispatcher.ChannelCodec {
	return dispatcher.ChannelCodec{
		Save: func(ch handoff.Channel) (json.RawMessage, []handoff.FD, error) {
			var s savedChannel
			var fds []handoff.FD
			switch c := ch.(type) {
			case *handoff.Conn:
				state := c.State()
				s.Native, fds = &state, state.FDs()
			case *node.Conn:
				state := c.State()
				s.Node, fds = &state, state.FDs()
			default:
				return nil, nil, fmt.Errorf("a channel of a kind that cannot cross: %T", ch)
			}
			text, err := json.Marshal(s)
			return text, fds, err
		},
		Restore: func(slot int, saved json.RawMessage) (handoff.Channel, error) {
			var s savedChannel
			if err := json.Unmarshal(saved, &s); err != nil {
				return nil, err
			}
			switch {
			case s.Native != nil:
				return handoff.RestoreConn(*s.Native)
			case s.Node != nil:
				return node.Restore(*s.Node, m.nodeConfig(slot))
			}
			return nil, errors.New("a channel of no kind")
		},
	}
}
