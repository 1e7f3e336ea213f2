package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
)

const config = "listen = [\":80\"]\nworkers = 2\ncanary-time = \"100ms\"\n"

// TestUnits boots once and runs its parts one after the other.
func TestUnits(t *testing.T) {
	root := os.Getenv("SYSTEMD_ROOT")
	if root == "" {
		t.Skip("SYSTEMD_ROOT is not set: make systemd sets it")
	}
	began := time.Now()
	g := boot(t, root)
	t.Logf("%s, booted in %v", strings.SplitN(g.run("systemctl", "--version"), "\n", 2)[0], time.Since(began).Round(time.Millisecond))
	for _, part := range []struct {
		name string
		run  func(*guest)
	}{
		{"notify", notify},
		{"reload", reload},
		{"upgrade", upgrade},
		{"crash", func(g *guest) { comesBack(g, "ABRT") }},
		{"stopped", func(g *guest) { comesBack(g, "STOP") }},
		{"wrong file", wrongFile},
		{"fd store", fdStore},
		{"socket activation", socketActivation},
		{"strict", strict},
		{"journal", journal}, // last: it looks at the lines of all parts
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			g.t = t
			g.reset(config)
			part.run(g)
		})
		if !ok {
			out, _ := g.try("journalctl", "--no-pager", "-n", "60", "-o", "cat", "-u", "rrd.service")
			t.Logf("the journal at the end of %s:\n%s", part.name, out)
		}
		g.t = t
	}
}

// notify: systemctl start returns when rrd is ready, the status tells, and stop ends it.
func notify(g *guest) {
	g.run("systemctl", "start", "rrd")
	g.must("ActiveState", "active")
	g.becomes("StatusText", "2/2 workers ready, policy rr, queue 0")
	g.serves()
	g.run("rrdctl", "drain")
	harness.Poll(g.t, "the status of a drained rrd", func() error {
		if text := g.property("StatusText"); !strings.HasPrefix(text, "lame duck: ") {
			return fmt.Errorf("%q", text)
		}
		return nil
	})
	g.serves()
	g.run("systemctl", "stop", "rrd")
	g.must("ActiveState", "inactive")
	g.must("Result", "success")
	if left, err := g.try("sh", "-c", "cat /proc/[0-9]*/comm | grep -x rrd"); err == nil {
		g.t.Errorf("a stop has left %q", left)
	}
}

// reload: the exit code of systemctl reload tells, and rrd goes on with either.
func reload(g *guest) {
	g.run("systemctl", "start", "rrd")
	pid := g.property("MainPID")
	g.run("systemctl", "reload", "rrd")
	if a := g.serves(); a.Generation != 2 {
		g.t.Errorf("%+v", a)
	}
	g.write("/etc/rrd/rrd.toml", "nosuch = 1\n")
	g.fails("systemctl", "reload", "rrd")
	g.must("ActiveState", "active")
	g.must("MainPID", pid)
	g.must("NRestarts", "0")
	if a := g.serves(); a.Generation != 2 {
		g.t.Errorf("%+v", a)
	}
	harness.Poll(g.t, "the status", func() error {
		if text := g.property("StatusText"); !strings.Contains(text, "reload failed: ") {
			return fmt.Errorf("%q", text)
		}
		return nil
	})
}

// upgrade: the process and its place in systemd stay, and the records after it have their
// priorities, see journal.
func upgrade(g *guest) {
	g.run("systemctl", "start", "rrd")
	pid := g.property("MainPID")
	g.run("rrdctl", "upgrade")
	g.must("MainPID", pid)
	g.must("ActiveState", "active")
	g.serves()
	g.run("systemctl", "reload", "rrd")
	if a := g.serves(); a.Generation != 2 {
		g.t.Errorf("%+v", a)
	}
}

// comesBack: the watchdog ends a master that is stopped, and one that crashes has exit code
// 2 as any Go program. systemd starts both again.
func comesBack(g *guest, signal string) {
	g.dropIn("[Service]\nWatchdogSec=3\n")
	g.run("systemctl", "start", "rrd")
	pid := g.property("MainPID")
	g.run("sh", "-c", "kill -"+signal+" "+pid)
	began := time.Now()
	harness.Poll(g.t, "another master", func() error {
		if now, state := g.property("MainPID"), g.property("ActiveState"); now == pid || now == "0" || state != "active" {
			return fmt.Errorf("%s, process %s (was %s), result %s", state, now, pid, g.property("Result"))
		}
		return nil
	})
	g.t.Logf("back after %v", time.Since(began).Round(time.Millisecond))
	g.must("NRestarts", "1")
	g.serves()
}

// wrongFile: a file that cannot be read ends as failed within seconds, with exit code 2, and
// a repaired one starts.
func wrongFile(g *guest) {
	g.write("/etc/rrd/rrd.toml", "nosuch = 1\n")
	began := time.Now()
	g.fails("systemctl", "start", "rrd")
	g.becomes("SubState", "failed") // and not "auto-restart"
	took := time.Since(began)
	if took > 10*time.Second {
		g.t.Errorf("it failed after %v", took)
	}
	g.t.Logf("failed after %v", took.Round(time.Millisecond))
	g.must("ActiveState", "failed")
	g.must("ExecMainStatus", "2")
	g.write("/etc/rrd/rrd.toml", config)
	g.run("systemctl", "reset-failed", "rrd")
	g.run("systemctl", "start", "rrd")
	g.serves()
}

// fdStore: systemd holds the listener while there is no master, and the next one serves
// the clients that have queued up.
func fdStore(g *guest) {
	g.dropIn("[Service]\nRestartSec=2\n")
	g.run("systemctl", "start", "rrd")
	g.must("NFileDescriptorStore", "1")
	before := g.kept()
	pid := g.property("MainPID")
	g.run("sh", "-c", "kill -KILL "+pid)
	g.becomes("SubState", "auto-restart")
	g.serves() // refused without the store
	g.becomes("ActiveState", "active")
	g.must("NRestarts", "1")
	g.must("NFileDescriptorStore", "1")
	if n := g.kept() - before; n != 1 {
		g.t.Errorf("%d listeners were kept", n)
	}
}

// kept counts the listeners that masters got from the store.
func (g *guest) kept() (n int) {
	for _, r := range g.journal() {
		if strings.Contains(r.Message, `"event":"listener.kept"`) {
			n++
		}
	}
	return n
}

// socketActivation: the first client starts rrd, and the socket outlives a restart.
func socketActivation(g *guest) {
	g.write("/etc/rrd/rrd.toml", "listen = [\"web=fd:web\"]\nworkers = 2\n")
	g.run("systemctl", "start", "rrd.socket")
	g.must("ActiveState", "inactive")
	g.serves()
	g.becomes("ActiveState", "active")
	pid := g.property("MainPID")
	g.run("systemctl", "restart", "rrd")
	if now := g.property("MainPID"); now == pid {
		g.t.Errorf("process %s is the old one", now)
	}
	g.serves()
	g.must("NFileDescriptorStore", "0") // the socket unit has it
}

// strict: rrd starts, reloads and is upgraded with the strict drop-in.
func strict(g *guest) {
	text, err := os.ReadFile("../../docs/deploy/systemd/rrd.service.d/strict.conf")
	if err != nil {
		g.t.Fatal(err)
	}
	g.dropIn(string(text))
	g.run("systemctl", "start", "rrd")
	g.run("systemctl", "reload", "rrd")
	g.run("rrdctl", "upgrade")
	g.serves()
}

// journal: every record has the priority of its level, and errors before the log have 3.
func journal(g *guest) {
	want := map[string]string{"debug": "7", "info": "6", "warn": "4", "error": "3"}
	seen := make(map[string]int)
	for _, r := range g.journal() {
		var line struct{ Level, Event string }
		switch {
		case strings.HasPrefix(r.Message, "rrd: "):
			line.Level, line.Event = "error", "early"
		case !strings.HasPrefix(r.Message, "{"):
			continue // a stack of a crash
		case json.Unmarshal([]byte(r.Message), &line) != nil:
			g.t.Errorf("%q", r.Message)
		}
		if r.Priority != want[line.Level] {
			g.t.Errorf("priority %s: %s", r.Priority, r.Message)
		}
		seen[line.Event]++
	}
	for _, event := range []string{"early", "worker.ready", "reload.failed", "upgrade.done"} {
		if seen[event] == 0 {
			g.t.Errorf("no line of %s in %v", event, seen)
		}
	}
}
