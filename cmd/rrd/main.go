//go:build unix

// Command rrd is the master: it reads the flags, builds the rooms (dispatcher,
// pool, metrics), ties them together and stops them. See docs/architecture.md.
package main

import (
	"fmt"
	"io"
	"os"

	"rrd/worker/pool"
)

// Exit codes; they are part of the contract with scripts and service managers.
const (
	exitOK       = 0 // stopped as asked
	exitFailure  = 1 // failed at run time
	exitUsage    = 2 // usage or configuration
	exitNotReady = 3 // no worker ever became ready
)

// builtInArg is the hidden first argument that makes this program the built-in
// worker. An argument, not a variable: environments are inherited.
const builtInArg = "__rrd-worker"

func main() { os.Exit(start(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// start is main without the process's end.
func start(args, environ []string, stdout, stderr *os.File) int {
	if len(args) > 0 {
		switch args[0] {
		case pool.ExecHelperArg:
			return pool.ExecHelper(args[1:])
		case builtInArg:
			return runBuiltIn(args[1:], stderr)
		case checkStateArg:
			return checkState(args[1:], environ, stdout, stderr)
		case compareWord:
			return runCompare(args[1:], environ, stdout, stderr)
		}
	}
	if _, ok := lookupVariable(environ, envResume); ok {
		return resume(args, environ, stdout, stderr)
	}
	c, what, err := parseConfig(args, environ)
	if err != nil {
		return fail(stderr, exitUsage, err)
	}
	switch what {
	case actionHelp:
		_, err = io.WriteString(steady(stdout), helpText)
	case actionVersion:
		err = writeVersion(steady(stdout))
	case actionCheck:
		if err := c.check(steady(stdout), takeActivation(environ, os.Getpid()), fitBudget); err != nil {
			return fail(stderr, exitUsage, err)
		}
	case actionRun:
		return runMaster(c, args, environ, stdout, stderr)
	}
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// fail prints the one line that every error is.
func fail(w io.Writer, code int, err error) int {
	writeInTime(w, fmt.Sprintf("rrd: %s\n", oneLine(err.Error())))
	return code
}
