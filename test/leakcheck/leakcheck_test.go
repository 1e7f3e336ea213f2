package leakcheck

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// short is the patience of tests that expect a leak to be found.
const short = 50 * time.Millisecond

// freshMode is the variable that makes this binary the fresh process of
// TestRunInAFreshProcess.
const freshMode = "LEAKCHECK_TEST_FRESH"

func TestMain(m *testing.M) {
	if os.Getenv(freshMode) != "" {
		os.Exit(run(m.Run, os.Stderr, short))
	}
	Main(m)
}

func linuxOnly(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc of Linux")
	}
}

// recorder is a testing.TB that keeps what it is told. It embeds the real one for
// the methods that it leaves alone.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
	failed   bool
	skipped  bool
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool     { return r.failed }
func (r *recorder) Skipped() bool    { return r.skipped }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// end runs the cleanups as the end of a test does, last one first.
func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func (r *recorder) text() string { return strings.Join(r.errors, "\n") }

func wantContains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("got %q, want it to contain %q", text, w)
		}
	}
}

func TestCleanTestPasses(t *testing.T) {
	r := &recorder{TB: t}
	check(r, short)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	r.end()
	if len(r.errors) > 0 {
		t.Errorf("a clean test failed: %s", r.text())
	}
}

func TestLeakedListenerIsDescribed(t *testing.T) {
	r := &recorder{TB: t}
	check(r, short)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r.end()
	wantContains(t, r.text(), "left 1 behind", "descriptor", "socket", "local "+ln.Addr().String())
}

func TestLeakedConnectionNamesItsPeer(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": t.TempDir() + "/s"}[network]
			ln, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			r := &recorder{TB: t}
			check(r, short)
			c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r.end()
			wantContains(t, r.text(), "remote "+ln.Addr().String())
		})
	}
}

func TestLeakedFileIsNamed(t *testing.T) {
	linuxOnly(t)
	r := &recorder{TB: t}
	check(r, short)
	f, err := os.Create(t.TempDir() + "/kept-open")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.end()
	wantContains(t, r.text(), fmt.Sprintf("descriptor %d: %s", f.Fd(), f.Name()))
}

// A number that was open before and now refers to something else is a leak.
func TestReusedNumberIsALeak(t *testing.T) {
	old, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(old.Fd())
	r := &recorder{TB: t}
	check(r, short)
	_ = old.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if int(dir.Fd()) != fd {
		t.Skipf("descriptor %d was not used again at once, got %d", fd, dir.Fd())
	}
	r.end()
	wantContains(t, r.text(), fmt.Sprintf("descriptor %d:", fd))
}

func TestLeakedGoroutineShowsItsStack(t *testing.T) {
	r := &recorder{TB: t}
	check(r, short)
	stopC, doneC := make(chan struct{}), make(chan struct{})
	go leakOnPurpose(stopC, doneC) // waited for below
	stopC <- struct{}{}
	r.end()
	close(stopC)
	<-doneC
	wantContains(t, r.text(), "left 1 behind", "goroutine ", "leakOnPurpose", "leakcheck_test.go")
}

func leakOnPurpose(stopC <-chan struct{}, doneC chan<- struct{}) {
	defer close(doneC)
	<-stopC // it runs: before that it has no stack to show
	<-stopC
}

// What ends within the patience is no leak: here by another goroutine that ends
// on its own a little later.
func TestGoroutineAboutToEndIsWaitedFor(t *testing.T) {
	r := &recorder{TB: t}
	check(r, Patience)
	stopC, doneC := make(chan struct{}), make(chan struct{})
	go leakOnPurpose(stopC, doneC)
	stopC <- struct{}{}
	time.AfterFunc(short, func() { close(stopC) })
	r.end()
	if len(r.errors) > 0 {
		t.Errorf("did not wait: %s", r.text())
	}
}

func TestSignalGoroutineIsExcused(t *testing.T) {
	r := &recorder{TB: t}
	check(r, short)
	signalC := make(chan os.Signal, 1)
	signal.Notify(signalC, syscall.SIGUSR1)
	signal.Stop(signalC)
	r.end()
	if len(r.errors) > 0 {
		t.Errorf("the goroutine of os/signal counts: %s", r.text())
	}
}

// A test that failed, or was skipped, halfway is not also blamed for a leak.
func TestFailedAndSkippedTestsAreNotChecked(t *testing.T) {
	for _, r := range []*recorder{{TB: t, failed: true}, {TB: t, skipped: true}} {
		check(r, short)
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		r.end()
		_ = f.Close()
		if len(r.errors) > 0 {
			t.Errorf("failed %v, skipped %v: %s", r.failed, r.skipped, r.text())
		}
	}
}

func TestRunReportsALeakOfTheWholePackage(t *testing.T) {
	var stderr bytes.Buffer
	var ln net.Listener
	code := run(func() (code int) {
		ln, _ = net.Listen("tcp", "127.0.0.1:0")
		return 0
	}, &stderr, short)
	if ln == nil {
		t.Fatal("cannot listen on the loopback")
	}
	defer ln.Close()
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	wantContains(t, stderr.String(), "leakcheck:", "left 1 behind", ln.Addr().String())
}

func TestRunKeepsTheCodeOfTheTests(t *testing.T) {
	for _, want := range []int{0, 1, 2} {
		var stderr bytes.Buffer
		if got := run(func() int { return want }, &stderr, short); got != want || stderr.Len() > 0 {
			t.Errorf("tests ended with %d: got %d and %q", want, got, stderr.String())
		}
	}
}

// The poller's descriptors appear with the first pipe; a fresh process shows it.
func TestRunInAFreshProcess(t *testing.T) {
	if os.Getenv(freshMode) != "" {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.Close(), w.Close()
		if os.Getenv(freshMode) == "leak" {
			if _, err := syscall.Dup(1); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	for _, mode := range []string{"clean", "leak"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRunInAFreshProcess$")
			cmd.Env = append(os.Environ(), freshMode+"="+mode)
			out, err := cmd.CombinedOutput()
			if leaks := mode == "leak"; (err != nil) != leaks || strings.Contains(string(out), "leakcheck:") != leaks {
				t.Errorf("%s: %v\n%s", mode, err, out)
			}
		})
	}
}
