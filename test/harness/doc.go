// Package harness runs the built rrd for tests: it builds the program once, starts
// it on addresses of its own, learns from the log what happens, and checks at the
// end of every test what every test has in common.
//
//	m := harness.Start(t, harness.Options{Args: []string{"--policy", "rr", "--workers", "4"}})
//	report := load.Run(t.Context(), load.Config{Address: m.Addr()})
//
// # The end of every test
//
// Start registers a cleanup that fails the test unless
//
//   - the law holds, exactly, for every listener, with nothing queued or in flight,
//   - the master's descriptors and goroutines are as many as before the test's load,
//   - no child of the master is a zombie,
//   - the master ends with the expected exit code, by SIGTERM if it still runs,
//   - no process that it or a worker has started is left,
//   - its directory and its TMPDIR hold what they held before,
//   - none of its listeners answers any more.
//
// The law is also checked in each Status that a test looks at.
//
// # Waiting
//
// Nothing sleeps for a fixed time: a test waits for an event of the log (Wait) or
// for a condition (Poll), both until Patience is over.
//
// # Addresses
//
// Each master listens on an address of its own in 127/8, so that parallel tests
// can tell their listeners apart even when the kernel gives a port out again.
package harness

import "time"

// Patience is how long a test waits for one thing that must happen. Only what
// fails waits for all of it.
const Patience = 30 * time.Second
