package pool

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// listenFDs is a config of programs that take their listeners by LISTEN_FDS.
func listenFDs(c Config) Config {
	c.Protocol, c.SharesListeners, c.ReadyAfter = ProtocolListenFDs, true, 300*time.Millisecond
	return c
}

const foreground = "process 7, which rrd cannot supervise: run it in the foreground"

func TestDaemonizesAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, listenFDs(Config{Size: 2}))
		w.run()
		w.pass(200 * time.Millisecond)
		w.left = map[int]background{w.at(0).pid(): {pid: 7}, w.at(1).pid(): {pid: 7, group: true}}
		w.do(func() { w.at(0).exit(exitStatus{}) })
		w.do(func() { w.at(1).exit(exitStatus{}) })
		err := w.end()
		boot := new(BootError)
		if !errors.As(err, &boot) || !strings.Contains(err.Error(), foreground) || !strings.HasSuffix(err.Error(), ", and end process 7") {
			t.Fatal(err)
		}
		if text := boot.Failures[1].String(); !strings.Contains(text, foreground) || strings.Contains(text, "end process") {
			t.Error(text) // that one ended with its leader
		}
	})
}

// Ready without a word, then gone: it is not started again.
func TestDaemonizesAfterItWasReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, listenFDs(Config{Size: 2}))
		w.left = map[int]background{100: {pid: 7}, 101: {pid: 7}}
		w.run()
		w.pass(500 * time.Millisecond)
		w.wantState(StateReady, StateReady)
		w.do(func() { w.at(0).exit(exitStatus{}) })
		w.pass(300 * time.Millisecond)
		w.wantState(StateDown, StateReady)
		w.do(func() { w.at(1).exit(exitStatus{}) })
		err := w.end()
		if !errors.Is(err, ErrAllDown) || !strings.Contains(err.Error(), foreground) {
			t.Error(err)
		}
	})
}

// These exits are like any other.
func TestDoesNotDaemonize(t *testing.T) {
	for name, tt := range map[string]struct {
		conf   Config
		after  time.Duration
		status exitStatus
		left   background
	}{
		"nothing is left": {listenFDs(Config{}), 500 * time.Millisecond, exitStatus{}, background{}},
		"late":            {listenFDs(Config{}), daemonWithin + time.Millisecond, exitStatus{}, background{pid: 7}},
		"with a code":     {listenFDs(Config{}), 500 * time.Millisecond, exitStatus{code: 1}, background{pid: 7}},
		"by a signal":     {listenFDs(Config{}), 500 * time.Millisecond, killedStatus, background{pid: 7}},
		"of another kind": {Config{Protocol: ProtocolNative}, 500 * time.Millisecond, exitStatus{}, background{pid: 7}},
		"that has spoken": {Config{SharesListeners: true}, 500 * time.Millisecond, exitStatus{}, background{pid: 7}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.conf)
				w.left = map[int]background{100: tt.left}
				w.run()
				if tt.conf.Protocol != ProtocolListenFDs {
					w.do(func() { w.Spoke(w.id(0)); w.Ready(w.id(0)) })
				}
				w.pass(tt.after)
				w.do(func() { w.at(0).exit(tt.status) })
				w.wantState(StateBackoff)
				w.StopNow()
				if err := w.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
