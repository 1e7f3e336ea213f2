package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// Around exec no child may be reaped by the kernel, which is what ignoring CHLD means
// (wait(2)): its exit code would be lost.
func TestIgnoredAroundExec(t *testing.T) {
	restore := ignoreSignals()
	text, err := os.ReadFile("/proc/self/status")
	restore()
	if err != nil {
		t.Fatal(err)
	}
	_, mask, _ := strings.Cut(string(text), "SigIgn:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for sig, want := range map[syscall.Signal]bool{syscall.SIGHUP: true, syscall.SIGTERM: false, syscall.SIGCHLD: false} {
		if got := ignored>>(sig-1)&1 == 1; got != want {
			t.Errorf("%v is ignored: %v", sig, got)
		}
	}
}

// What "auto" has come to crosses: the workers are of that kind, whatever the program is
// now.
func TestAutoIsNotJudgedAnew(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "server")
	if err := os.WriteFile(program, []byte("#!/usr/bin/env node\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"-w", "3", "--", program}
	c, _, err := parseConfig(args, os.Environ())
	if err != nil || !c.node() {
		t.Fatal(err, c.WorkerProtocol)
	}
	s := &savedMaster{Settings: c.written(), Command: c.Command, Policy: c.Policy, PolicyReason: c.PolicyReason,
		Protocol: c.WorkerProtocol, ProtocolReason: c.ProtocolReason, Workers: c.Workers}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	after, err := s.config(os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	if !after.node() || after.Policy != c.Policy || after.Workers != 3 || after.ProtocolReason != c.ProtocolReason {
		t.Errorf("%v %v %d %q, was %v %v %q", after.WorkerProtocol, after.Policy, after.Workers, after.ProtocolReason, c.WorkerProtocol, c.Policy, c.ProtocolReason)
	}
}

// A default that is another in the next version is no change that anybody has made.
func TestAnotherDefaultIsNoChange(t *testing.T) {
	c := &config{settings: map[string]setValue{"window": {[]string{"8"}, fromDefault}}}
	s := &savedMaster{Settings: map[string]savedSetting{"window": {[]string{"4"}, fromDefault}}}
	if err := s.agrees(c); err != nil {
		t.Error(err)
	}
	s.Settings["window"] = savedSetting{[]string{"4"}, "flag"}
	if err := s.agrees(c); err == nil {
		t.Error("it was a flag's, and is not any more")
	}
}

// A check run that is no rrd may say as much as it likes.
func TestCheckRunBoundsItsOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endless")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec yes\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := &master{program: path, environ: os.Environ(), hooks: newHookRunner(zerolog.Nop(), nil)}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := m.checkRun(ctx, &savedMaster{}); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("it took %d MB", n>>20)
	}
}
