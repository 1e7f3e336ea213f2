//go:build unix

package main

import (
	"os"
	"syscall"
	"testing"
	"time"
)

func TestStopRequests(t *testing.T) {
	const ms = time.Millisecond
	type signal struct {
		after time.Duration // of the first
		sig   os.Signal
		want  verdict
	}
	for name, signals := range map[string][]signal{
		"one": {{0, syscall.SIGTERM, stopFirst}},
		"timeout sends two": {
			{0, syscall.SIGTERM, stopFirst},
			{0, syscall.SIGTERM, stopRepeat},
		},
		"npm and the terminal": {
			{0, syscall.SIGINT, stopFirst},
			{5 * ms, syscall.SIGINT, stopRepeat},
			{6 * ms, syscall.SIGINT, stopSame}, // recorded once
		},
		"a mix": {
			{0, syscall.SIGINT, stopFirst},
			{50 * ms, syscall.SIGTERM, stopRepeat},
			{2000 * ms, syscall.SIGINT, stopAtOnce},
		},
		"a second later": {
			{0, syscall.SIGTERM, stopFirst},
			{999 * ms, syscall.SIGTERM, stopRepeat},
			{1000 * ms, syscall.SIGTERM, stopAtOnce}, // of the first, not of its repeat
		},
		"QUIT and HUP never hurry": {
			{0, syscall.SIGQUIT, stopFirst},
			{5 * ms, syscall.SIGQUIT, stopSame},
			{2000 * ms, syscall.SIGQUIT, stopSame},
			{2000 * ms, syscall.SIGHUP, stopSame},
			{2000 * ms, syscall.SIGTERM, stopAtOnce},
		},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			var r stopRequest
			stopping := false
			for i, s := range signals {
				now := began.Add(s.after)
				got := r.judge(s.sig, stopping, now)
				if got != s.want {
					t.Errorf("signal %d, %v after %v: verdict %d, want %d", i, s.sig, s.after, got, s.want)
				}
				if got == stopFirst {
					r, stopping = stopRequest{since: now}, true
				}
			}
		})
	}
}

func TestHangupStops(t *testing.T) {
	for _, h := range []hangup{{}, {Ignored: true}, {Terminal: true, Ignored: true}} {
		if h.stops(syscall.SIGHUP) {
			t.Errorf("%+v: HUP stops", h)
		}
		if !h.stops(syscall.SIGTERM) || !h.stops(syscall.SIGINT) || !h.stops(syscall.SIGQUIT) || h.stops(syscall.SIGUSR1) {
			t.Errorf("%+v: wrong about other signals", h)
		}
	}
}
