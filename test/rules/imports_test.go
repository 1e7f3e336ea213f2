package rules

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rule is about one import path and all below it.
type rule struct {
	name   string
	target string // an import path; "!" at its end leaves out what is below it
	// within limits the rule to files under one folder; empty means everywhere.
	within string
	// except are the files that may: a folder with "/" at its end, or a pattern
	// of path.Match.
	except []string
	why    string
}

const (
	byHooks     = "rooms import downward only; cmd/rrd joins them by hooks"
	twoSides    = "master and worker are two processes: what both must know is in handoff"
	filled      = "metrics knows no other room: cmd/rrd fills it"
	testOnly    = "for tests only: no program links it"
	alone       = "rrdctl links it, too, and knows no room"
	client      = "it knows the master by its control socket only"
	commandLine = "flags and files end in cmd: a room takes a Config"
)

var rules = []rule{
	{name: "handoff is the lowest room", within: "handoff/", target: "rrd/dispatcher", why: byHooks},
	{name: "handoff is the lowest room", within: "handoff/", target: "rrd/worker", why: byHooks},
	{name: "metrics stands alone", within: "metrics/", target: "rrd/dispatcher", why: filled},
	{name: "metrics stands alone", within: "metrics/", target: "rrd/worker", why: filled},
	{name: "metrics stands alone", within: "metrics/", target: "rrd/handoff", why: filled},
	{name: "the dispatcher never starts or kills", within: "dispatcher/", target: "rrd/worker", why: byHooks},
	{name: "the pool never sees a connection", within: "worker/", target: "rrd/dispatcher", why: byHooks},
	{name: "the pool is not a worker", within: "worker/pool/", target: "rrd/worker!", why: twoSides},
	{
		name: "a worker has no pool", within: "worker/", target: "rrd/worker/pool", except: []string{"worker/pool/"},
		why: "a program that only wants to be a worker links no pool",
	},
	{
		name: "rooms count, cmd/rrd exposes", target: "rrd/metrics", except: []string{"metrics/", "cmd/rrd/"},
		why: "a room that knew the metrics would bring Prometheus along",
	},
	{name: "nothing imports a program", target: "rrd/cmd", except: []string{"cmd/"}, why: "it joins the rooms and is joined by none"},
	{name: "control is only a conversation", within: "cmd/internal/control/", target: "rrd/dispatcher", why: alone},
	{name: "control is only a conversation", within: "cmd/internal/control/", target: "rrd/worker", why: alone},
	{name: "control is only a conversation", within: "cmd/internal/control/", target: "rrd/handoff", why: alone},
	{name: "control is only a conversation", within: "cmd/internal/control/", target: "rrd/metrics", why: alone},
	{name: "rrdctl is only a client", within: "cmd/rrdctl/", target: "rrd/dispatcher", why: client},
	{name: "rrdctl is only a client", within: "cmd/rrdctl/", target: "rrd/worker", why: client},
	{name: "rrdctl is only a client", within: "cmd/rrdctl/", target: "rrd/handoff", why: client},
	{name: "rrdctl is only a client", within: "cmd/rrdctl/", target: "rrd/metrics", why: client},
	{name: "the live view", target: "charm.land", except: []string{"cmd/rrdctl/"}, why: "the master must not link what draws on terminals"},
	{name: "helpers of tests", target: "rrd/test", except: []string{"test/", "*_test.go"}, why: testOnly},
	{name: "go-cmp", target: "github.com/google/go-cmp", except: []string{"test/", "*_test.go"}, why: testOnly},
	{name: "rapid", target: "pgregory.net/rapid", except: []string{"test/", "*_test.go"}, why: testOnly},
	{
		name: "Prometheus", target: "github.com/prometheus", except: []string{"metrics/", "cmd/rrd/", "test/*_test.go"},
		why: "a worker must not link it, and a room's own counts are cheaper",
	},
	{
		name: "zerolog", target: "github.com/rs/zerolog", except: []string{"cmd/rrd/", "dispatcher/"},
		why: "rooms return errors or call hooks; cmd/rrd logs, and dispatcher what has no caller",
	},
	{name: "cobra and pflag", target: "github.com/spf13", except: []string{"cmd/"}, why: commandLine},
	{name: "toml", target: "github.com/BurntSushi/toml", except: []string{"cmd/"}, why: commandLine},
	{
		name: "the kernel", target: "golang.org/x/sys/unix",
		except: []string{
			"handoff/", "test/", "*_test.go", "cmd/internal/control/*_linux.go", "cmd/internal/control/*_bsd.go", "cmd/internal/control/*_unix.go",
			"cmd/rrdctl/*_unix.go", "cmd/rrd/*_linux.go", "cmd/rrd/*_unix.go",
			"dispatcher/poll*.go", "dispatcher/sys*.go", "dispatcher/socket*.go", "dispatcher/accept*.go", "dispatcher/listen*.go",
			"dispatcher/shared*.go", "dispatcher/*_linux.go", "dispatcher/*_bsd.go", "dispatcher/*_unix.go",
			"dispatcher/internal/aside/*_linux.go", "dispatcher/internal/aside/*_bsd.go",
			"worker/*_linux.go", "worker/*_unix.go", "worker/pool/*_linux.go", "worker/pool/*_unix.go",
		},
		why: "met in handoff and in files named for it, so that the rest can be read, and tested, without one",
	},
}

// forbids reports whether file, a slash path from the module's root, breaks the
// rule by importing target.
func (r rule) forbids(file, target string) bool {
	if want, exact := strings.CutSuffix(r.target, "!"); target != want && (exact || !strings.HasPrefix(target, want+"/")) {
		return false
	}
	if !strings.HasPrefix(file, r.within) {
		return false
	}
	for _, e := range r.except {
		name := file
		if !strings.Contains(e, "/") {
			name = path.Base(file) // a pattern without a folder is about the name
		}
		if ok, _ := path.Match(e, name); ok || strings.HasSuffix(e, "/") && strings.HasPrefix(file, e) {
			return false
		}
	}
	return true
}

// Every Go file of the module is read, whatever system it is for.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skip := strings.HasPrefix(d.Name(), ".") && name != root || d.Name() == "testdata"; skip {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			target, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.forbids(filepath.ToSlash(rel), target) {
					t.Errorf("%s imports %s: %s: %s", rel, target, r.name, r.why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("only %d Go files found under %s: is this the module?", files, root)
	}
}

func TestRulesForbid(t *testing.T) {
	for _, c := range []struct {
		file, target string
		forbidden    bool
	}{
		{"handoff/conn.go", "rrd/worker/pool", true},
		{"handoff/node/node.go", "rrd/dispatcher", true},
		{"handoff/conn.go", "golang.org/x/sys/unix", false},
		{"handoff/conn_test.go", "rrd/test/leakcheck", false},
		{"handoff/conn.go", "rrd/test/leakcheck", true},
		{"metrics/server.go", "rrd/handoff", true},
		{"metrics/server.go", "github.com/prometheus/client_golang/prometheus", false},
		{"dispatcher/loop.go", "github.com/prometheus/client_golang/prometheus", true},
		{"dispatcher/loop.go", "rrd/handoff", false},
		{"dispatcher/loop.go", "rrd/worker", true},
		{"dispatcher/loop.go", "golang.org/x/sys/unix", true},
		{"dispatcher/poll_bsd.go", "golang.org/x/sys/unix", false},
		{"dispatcher/table_test.go", "pgregory.net/rapid", false},
		{"dispatcher/table.go", "pgregory.net/rapid", true},
		{"worker/listener.go", "rrd/worker/pool", true},
		{"worker/listener.go", "rrd/handoff", false},
		{"worker/listener.go", "golang.org/x/sys/unix", true},
		{"worker/conn_unix.go", "golang.org/x/sys/unix", false},
		{"worker/listener_test.go", "rrd/worker", false},
		{"worker/pool/pool.go", "rrd/worker", true},
		{"worker/pool/pool_test.go", "rrd/worker/pool", false},
		{"worker/pool/pool.go", "rrd/dispatcher", true},
		{"worker/pool/pool.go", "github.com/rs/zerolog", true},
		{"worker/pool/pool.go", "rrd/workers", false},
		{"cmd/rrd/run.go", "rrd/dispatcher", false},
		{"cmd/rrd/run.go", "rrd/worker/pool", false},
		{"cmd/rrd/run.go", "rrd/metrics", false},
		{"cmd/rrd/run.go", "golang.org/x/sys/unix", true},
		{"cmd/rrd/config.go", "github.com/spf13/pflag", false},
		{"cmd/rrd/control.go", "rrd/cmd/internal/control", false},
		{"cmd/rrd/control.go", "charm.land/bubbletea/v2", true},
		{"cmd/rrdctl/top.go", "charm.land/bubbletea/v2", false},
		{"cmd/rrdctl/top.go", "rrd/cmd/internal/control", false},
		{"cmd/rrdctl/top.go", "rrd/metrics", true},
		{"cmd/internal/control/server.go", "rrd/worker/pool", true},
		{"cmd/internal/control/server.go", "golang.org/x/sys/unix", true},
		{"cmd/internal/control/peer_linux.go", "golang.org/x/sys/unix", false},
		{"worker/pool/config.go", "github.com/BurntSushi/toml", true},
	} {
		broken := ""
		for _, r := range rules {
			if r.forbids(c.file, c.target) {
				broken = r.name
			}
		}
		if (broken != "") != c.forbidden {
			t.Errorf("%s imports %s: rule %q, want forbidden %v", c.file, c.target, broken, c.forbidden)
		}
	}
}
