package pool

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/handoff"
)

// roleArg makes the test binary play a worker or a master of its own.
const roleArg = "__role"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case ExecHelperArg:
			os.Exit(ExecHelper(os.Args[2:]))
		case roleArg:
			os.Exit(roles[os.Args[2]](os.Args[3:]))
		}
	}
	if err := CloseOnExecAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before := openFDs()
	code := m.Run()
	if code == 0 && !fuzzing() {
		code = checkLeaks(before)
	}
	os.Exit(code)
}

// fuzzing: package testing leaves processes and goroutines of its own then.
func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

// checkLeaks complains of descriptors, goroutines and zombies that tests left.
func checkLeaks(before []string) int {
	for deadline := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > 1; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "goroutines left:\n%s\n", buf[:runtime.Stack(buf, true)])
			return 1
		}
	}
	if after := openFDs(); len(after) > len(before)+2 { // the poller's own two
		fmt.Fprintf(os.Stderr, "descriptors left: before %v, after %v\n", before, after)
		return 1
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		fmt.Fprintf(os.Stderr, "children left: %d, %v\n", pid, err)
		return 1
	}
	return 0
}

// openFDs names what this process has open, the directory itself left out.
func openFDs() (names []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			names = append(names, e.Name()+" "+target)
		}
	}
	return names
}

var roles map[string]func([]string) int

func init() {
	roles = map[string]func([]string) int{
		"report":  roleReport,
		"wait":    roleWait,
		"notify":  roleNotify,
		"later":   roleNotifyLater,
		"limits":  roleLimits,
		"pid1":    rolePID1,
		"master":  roleMaster,
		"ignores": roleIgnores,
	}
}

// self is the command for a role.
func self(role string, args ...string) []string {
	name, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{name, roleArg, role}, args...)
}

// report is what a worker sees of itself.
type report struct {
	PID  int
	FDs  []string
	Env  []string
	Args []string
	Dir  string
}

// roleReport prints a report and waits for a signal.
func roleReport(args []string) int {
	r := report{PID: os.Getpid(), FDs: openFDs(), Env: os.Environ(), Args: args}
	r.Dir, _ = os.Getwd()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	return roleWait(nil)
}

// roleWait says that it runs and ends with 0 on TERM.
func roleWait([]string) int {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("waiting")
	<-c
	return 0
}

func roleIgnores([]string) int {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ignoring")
	select {}
}

// roleNotify says what its words are to NOTIFY_SOCKET.
func roleNotify(messages []string) int {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, m := range messages {
		if _, err := c.Write([]byte(m)); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return roleWait(nil)
}

// roleNotifyLater says READY=1 at once in slot 0, and in others when it gets USR1.
func roleNotifyLater(slot []string) int {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	if slot[0] != "0" {
		fmt.Println("to be told")
		<-c
	}
	return roleNotify([]string{"READY=1"})
}

// roleLimits prints the soft limit it was started with and those it has before and after.
func roleLimits([]string) int {
	var before, after syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before)
	n := OriginalNoFile()
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &after)
	fmt.Println(n, before == after, uint64(after.Cur) > n)
	return 0
}

// roleMaster runs a pool of one worker with a command to its end.
func roleMaster(command []string) int {
	p, err := New(Config{Size: 1, Argv: command, Restart: RestartNever})
	if err == nil {
		_ = p.Run(context.Background()) // a BootError, as the command just ends
	}
	return 0
}

// rolePID1 runs a pool whose workers make orphans, in a pid namespace of its own. It
// prints what is left of them.
func rolePID1([]string) int {
	if os.Getpid() != 1 {
		return 1
	}
	var exits []Exit
	readyC := make(chan struct{}, 8)
	p, err := New(Config{
		Size:            2,
		SharesListeners: true,
		ReadyAfter:      time.Millisecond,
		// Orphans that leave the group and end soon, some before their parent.
		Argv: []string{"/bin/sh", "-c", `for i in 1 2 3 4 5 6 7 8 9 10; do
			(setsid sh -c 'sleep 0.0'$i & ) ; done; exec sleep 1000`},
		Hooks: Hooks{
			Ready:  func(Worker) { readyC <- struct{}{} },
			Exited: func(_ Worker, x Exit) { exits = append(exits, x) },
		},
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() { // ends with the process
		<-readyC
		<-readyC
		// All orphans are made and have ended when the only children are workers.
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			if n := len(children()); n == 2 {
				break
			}
			// Their ends could be seen, but that the pool has reaped them it tells nobody.
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("children:", len(children()))
		p.Stop()
	}()
	err = p.Run(context.Background())
	fmt.Println("run:", err)
	for _, x := range exits {
		fmt.Println("exit:", x.Cause, x.Signal)
	}
	fmt.Println("left:", len(children()))
	return 0
}

// children returns the pids in this namespace but 1, zombies too.
func children() (pids []string) {
	matches, _ := filepath.Glob("/proc/[0-9]*")
	for _, m := range matches {
		if pid := filepath.Base(m); pid != "1" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// events runs a real pool and keeps what its hooks say.
type events struct {
	*Pool
	startedC chan Worker
	readyC   chan Worker
	orphanC  chan Worker
	exitedC  chan Exit
	lineC    chan Line
	runC     chan error
	conf     Config // what the pool was made of
}

// runReal starts a pool of one captured worker, which is killed when the test ends.
func runReal(t *testing.T, c Config) *events {
	t.Helper()
	e := &events{
		startedC: make(chan Worker, 64), readyC: make(chan Worker, 64), orphanC: make(chan Worker, 64),
		exitedC: make(chan Exit, 64), lineC: make(chan Line, 4096), runC: make(chan error, 1),
	}
	if c.Size == 0 {
		c.Size = 1
	}
	if c.Output.Mode == "" {
		c.Output = Output{Mode: OutputJSON, Record: func(l Line) { e.lineC <- l }}
	}
	c.Hooks.Started = func(w Worker, ch handoff.Channel) {
		if ch != nil {
			t.Cleanup(func() { ch.Close() })
		}
		e.startedC <- w
	}
	c.Hooks.Ready = func(w Worker) { e.readyC <- w }
	c.Hooks.Orphaned = func(w Worker) { e.orphanC <- w }
	c.Hooks.Exited = func(_ Worker, x Exit) { e.exitedC <- x }
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	e.conf = c
	e.run(t, p)
	return e
}

func (e *events) run(t *testing.T, p *Pool) {
	e.Pool = p
	doneC := make(chan struct{})
	go func() { // waited for by the cleanup
		defer close(doneC)
		e.runC <- p.Run(context.Background())
	}()
	t.Cleanup(func() { p.Thaw(); p.StopNow(); <-doneC })
}

// recv takes from a channel, within a time that is never reached.
func recv[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing came on %T", c)
	}
	return v
}

// line returns the text of the next line of output.
func (e *events) line(t *testing.T) string {
	t.Helper()
	return string(recv(t, e.lineC).Text)
}

// rest returns the lines of a pool that is over.
func (e *events) rest() (lines []string) {
	for len(e.lineC) > 0 {
		lines = append(lines, string((<-e.lineC).Text))
	}
	return lines
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// output runs a role of this binary under a shell line in which $0 and on are its words.
func shellOutput(t *testing.T, line string, words []string) string {
	t.Helper()
	out, err := exec.Command("/bin/sh", slices.Concat([]string{"-c", line}, words)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}
