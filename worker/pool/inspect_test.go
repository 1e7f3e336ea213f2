package pool

import (
	"slices"
	"strings"
	"testing"
)

func TestNamesNode(t *testing.T) {
	for name, want := range map[string]bool{
		"node": true, "nodejs": true, "node22": true, "node-20.1": true, "node18.20.4": true, "/usr/bin/node": true,
		"./node": true, "": false, "nodemon": false, "node_": false, "node-": false, "node-gyp": false, "deno": false, "bun": false,
		"nodes": false, "/opt/node/bin/npm": false, "node.js": false, "server.js": false, "/usr/bin/nodejs22x": false,
	} {
		if got := NamesNode(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestNodeFlags(t *testing.T) {
	for command, want := range map[string]string{
		"":                                  "",
		"node":                              "",
		"node server.js --inspect":          "",
		"node --inspect server.js --watch":  "--inspect",
		"node -r a.js --title x server.js":  "-r a.js --title x",
		"node --require=a.js server.js x":   "--require=a.js",
		"node --env_file e --watch s.js":    "--env_file e --watch",
		"node --inspect -- --inspect":       "--inspect",
		"node --inspect - --inspect":        "--inspect",
		"node22 --inspect-port 1234 s.js 1": "--inspect-port 1234",
		"node --watch":                      "--watch",
		"node -r":                           "-r",
		"server.js --inspect":               "",
		"sh -c node":                        "",
	} {
		if got := strings.Join(NodeFlags(strings.Fields(command)), " "); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

func TestNodeArgv(t *testing.T) {
	for _, x := range []struct {
		command string
		slot    int
		want    string // "" if nothing is changed
	}{
		{"node server.js", 3, ""},
		{"node --inspect server.js", 0, ""},
		{"node --inspect server.js", 3, "node --inspect=9232 server.js"},
		{"node --inspect=9300 server.js --inspect=9300", 1, "node --inspect=9301 server.js --inspect=9300"},
		{"node --inspect=0.0.0.0:9300 s.js", 2, "node --inspect=0.0.0.0:9302 s.js"},
		{"node --inspect=0.0.0.0 s.js", 2, "node --inspect=0.0.0.0:9231 s.js"},
		{"node --inspect=[::1]:9300 s.js", 2, "node --inspect=[::1]:9302 s.js"},
		{"node --inspect=[::1] s.js", 2, "node --inspect=[::1]:9231 s.js"},
		{"node --inspect=localhost s.js", 2, "node --inspect=localhost:9231 s.js"},
		{"node --inspect=:9300 s.js", 2, "node --inspect=:9302 s.js"},
		{"node --inspect-brk s.js", 1, "node --inspect-brk=9230 s.js"},
		{"node --inspect_brk=9400 s.js", 1, "node --inspect_brk=9401 s.js"},
		{"node --inspect-wait=9400 s.js", 1, "node --inspect-wait=9401 s.js"},
		{"node --inspect --inspect-port=9400 s.js", 1, "node --inspect --inspect-port=9401 s.js"},
		{"node --inspect-port=9400 --inspect s.js", 1, "node --inspect-port=9401 --inspect s.js"},
		{"node --inspect-port 9400 s.js 9400", 1, "node --inspect-port 9401 s.js 9400"},
		{"node --debug-port=9400 s.js", 1, "node --debug-port=9401 s.js"},
		{"node --inspect=0 s.js", 5, "node --inspect=0 s.js"},
		{"node --inspect --inspect-port=0 s.js", 5, "node --inspect --inspect-port=0 s.js"},
		{"node --inspect=65535 s.js", 1, "node --inspect=1024 s.js"},
		{"node --inspect=65535 s.js", 3, "node --inspect=1026 s.js"},
		// Node's to refuse.
		{"node --inspect=99 s.js", 1, ""},
		{"node --inspect= s.js", 1, ""},
		{"node --inspect=65536 s.js", 1, ""},
		{"node --inspect=h:x s.js", 1, ""},
		{"node --inspect-port", 1, ""},
		// Not about ports, or not Node's.
		{"node --inspect-publish-uid=http s.js", 1, ""},
		{"node --inspect-publish-uid http --inspect s.js", 1, "node --inspect-publish-uid http --inspect=9230 s.js"},
		{"node --title --inspect s.js", 1, ""},
		{"node s.js --inspect", 1, ""},
		{"node - --inspect", 1, ""},
		{"tool --inspect", 1, ""},
	} {
		argv := strings.Fields(x.command)
		got := strings.Join(nodeArgv(argv, x.slot), " ")
		want := x.want
		if want == "" {
			want = x.command
		}
		if got != want {
			t.Errorf("%s, slot %d: %s, want %s", x.command, x.slot, got, want)
		}
		if !slices.Equal(argv, strings.Fields(x.command)) {
			t.Errorf("%s: the argument was changed to %q", x.command, argv)
		}
	}
}

func TestNodeOptions(t *testing.T) {
	for _, x := range []struct {
		value string
		slot  int
		want  string
	}{
		{"", 1, ""},
		{"--max-old-space-size=4096", 1, "--max-old-space-size=4096"},
		{"--inspect", 0, "--inspect"},
		{"--inspect", 2, "--inspect=9231"},
		{"  --require  ./a.js   --inspect-port=9500 ", 2, "--require ./a.js --inspect-port=9502"},
		{`--require "./a \" --inspect.js" --inspect=9500`, 1, `--require "./a \" --inspect.js" --inspect=9501`},
		{`--title="a  b" --inspect`, 1, `--title="a  b" --inspect=9230`},
		{`--title="a  b`, 1, `--title="a  b`},
		{`--title "a\`, 1, `--title "a\`},
	} {
		if got := nodeOptions(x.value, x.slot); got != x.want {
			t.Errorf("%q, slot %d: %q, want %q", x.value, x.slot, got, x.want)
		}
	}
}
