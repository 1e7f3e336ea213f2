//go:build unix

package main

import (
	"slices"
	"strings"
	"testing"
)

// The first word of a row of the two tables ends at the first "|"; what follows it is one
// argument.
func argv(row string) []string {
	front, rest, found := strings.Cut(row, "|")
	list := strings.Fields(front)
	if found {
		list = append(list, rest)
	}
	return list
}

func TestLaunchersThatSwallowTheChannel(t *testing.T) {
	for row, want := range map[string]string{
		"npm start":                                           "npm",
		"/usr/bin/npm run serve":                              "npm",
		"npx serve":                                           "npx",
		"pnpm start":                                          "pnpm",
		"pnpx serve":                                          "pnpx",
		"./node_modules/.bin/yarn":                            "yarn",
		"yarnpkg start":                                       "yarnpkg",
		"corepack yarn start":                                 "corepack",
		"node --run start":                                    "node --run",
		"node --run=start":                                    "node --run",
		"node --watch server.js":                              "node --watch",
		"node --enable-source-maps --watch x.js":              "node --watch",
		"node --watch --inspect x.js":                         "node --watch",
		"node -r ./a.js --watch x.js":                         "node --watch",
		"node --watch-path=./src x.js":                        "node --watch-path",
		"node --watch-path ./src x.js":                        "node --watch-path",
		"node --watch_path ./src x.js":                        "node --watch-path",
		"/opt/node22 --watch x.js":                            "node --watch",
		"node /usr/lib/npm/bin/npm-cli.js start":              "npm-cli.js",
		"node -- /usr/lib/npm/bin/npm-cli.js":                 "npm-cli.js",
		"renamed start":                                       "renamed",
		"env npm start":                                       "npm",
		"/usr/bin/env -i A=1 B=2 npm start":                   "npm",
		"env -S|npm start":                                    "npm",
		"env|-Snpm start":                                     "npm",
		"env|--split-string=A=1 node --watch x.js":            "node --watch",
		"env A=1 nice -n 5 npm start":                         "npm",
		"timeout 60 npm start":                                "npm",
		"tini -- npm start":                                   "npm",
		"dumb-init node --watch x.js":                         "node --watch",
		"sh -c|npm start":                                     "npm",
		"/bin/bash -ec|exec npm start":                        "npm",
		"bash -o pipefail -c|npm start":                       "npm",
		"busybox sh -c|npm start":                             "npm",
		"sh -c|cd /app && NODE_ENV=production exec npm start": "npm",
		"sh -c|set -e; . ./env; 'npm' start":                  "npm",
		"sh -c|npm ci\nnpm start # at last":                   "npm",
		"sh -c|npm start | tee log":                           "npm",
		"sh -c|npm start || exit 1":                           "npm",
		"sh -c|{ npm start; }":                                "npm",
		"sh -c|(cd app; npm start)":                           "npm",
		"env sh -c|exec env npm start":                        "npm",
	} {
		target := func(name string) string {
			if name == "renamed" {
				return "/usr/lib/node_modules/npm/bin/npm-cli.js"
			}
			return name
		}
		if l := findLauncher(argv(row), target); l.swallows != want || l.runner != "" {
			t.Errorf("%q: %+v, want %q", row, l, want)
		}
	}
}

func TestLaunchersThatMaySwallowTheChannel(t *testing.T) {
	for row, want := range map[string]string{
		"tsx server.ts":                                   "tsx",
		"./node_modules/.bin/tsx server.ts":               "tsx",
		"node node_modules/.bin/tsx x.ts":                 "tsx",
		"ts-node server.ts":                               "ts-node",
		"nodemon server.js":                               "nodemon",
		"node /app/node_modules/nodemon/bin/nodemon.js x": "nodemon.js",
		"cross-env A=1 node server.js":                    "cross-env",
		"env A=1 tsx server.ts":                           "tsx",
		"sh -c|exec tsx server.ts":                        "tsx",
	} {
		if l := findLauncher(argv(row), nil); l.runner != want || l.swallows != "" {
			t.Errorf("%q: %+v, want %q", row, l, want)
		}
	}
}

func TestProgramsAreNoLaunchers(t *testing.T) {
	for _, row := range []string{
		"node server.js", "node server.js --watch", "node server.js npm start", "node --import tsx server.ts", "node --inspect server.js",
		"node -e|require('npm')", "node --title|npm", "node --title npm server.js", "node --watch-preserve-output server.js", "./npm.js", "node ./npm", "node npm.js",
		"env node server.js npm", "env -u npm -C yarn node server.js", "env NPM=npm node server.js", "sh -c|npm ci && exec node server.js", "sh -c|echo npm start", "sh -c|node server.js | npm",
		"sh -c|node server.js --port ${PORT}", "sh -c|echo 'x; npm start'", "sh start.sh npm", "sh", "sh -c", "env", "env A=1", "nice -n 5", "sh -c|", "sh -c|;;", "env -S", "env|-S",
		"sh -c|'", "./entry.sh", "env -S|env -S env",
	} {
		if l := findLauncher(argv(row), nil); l != (launcher{}) && row != "node ./npm" {
			t.Errorf("%q: %+v", row, l)
		}
	}
}

// What a program of Node is refused, it is refused only as one.
func TestLaunchersAreRefusedForNodeOnly(t *testing.T) {
	h := testHost(nil)
	const refused = "cannot be a Node worker, because npm starts the program in a second process: run the program itself, as in rrd -- node server.js"
	for _, tt := range []struct {
		args    []string
		environ []string
		want    string // of the error; "": none
		warns   string
	}{
		{args: words("-- npm start"), want: `command "npm start" ` + refused},
		{args: words("--worker-protocol node -- env npm start"), want: `command "env npm start" ` + refused},
		{args: words("--worker-protocol rrd -- npm start")},
		{args: words("--policy none --worker-protocol listen-fds -- npm start")},
		{args: words("-- env npm start")}, // auto does not take it for Node
		{args: words("-- node server.js"), environ: []string{"NODE_OPTIONS=--max-old-space-size=99 --watch"}, want: "because NODE_OPTIONS with --watch starts"},
		{args: words("--env NODE_OPTIONS= -- node server.js"), environ: []string{"NODE_OPTIONS=--watch"}},
		{args: words("--worker-protocol node -- tsx server.ts"), warns: "command: tsx may start the program in a second process, which rrd cannot serve: run node --import tsx server.ts"},
		{args: words("-- node server.js")},
	} {
		c, _, err := h.parseConfig(tt.args, tt.environ)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q: %v, want %q", tt.args, err, tt.want)
		case err == nil && slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, "second process") }) != (tt.warns != ""),
			tt.warns != "" && !slices.Contains(c.Warnings, tt.warns):
			t.Errorf("%q warns %q, want %q", tt.args, c.Warnings, tt.warns)
		}
	}
}

func TestOwnSockets(t *testing.T) {
	for _, tt := range []struct {
		command string
		env     []string
		path    string
		want    bool
	}{
		{"node launcher.js", nil, "/tmp/tsx-0/4242.pipe", true},
		{"node launcher.js", nil, "/tmp/x/../tool-4242.sock", true},
		{"node server.js", nil, "/tmp/app.sock", false},
		{"node server.js", nil, "/tmp/app-14242.sock", false},
		{"node server.js", nil, "/run/app/4242.sock", false},
		{"node server.js", nil, "/tmpfs/4242.sock", false},
		{"node server.js", nil, "@4242", false},
		{"tsx server.ts", nil, "/tmp/anything.sock", true},
		{"tsx server.ts", nil, "/run/app.sock", false},
		{"tsx server.ts", []string{"TMPDIR=/var/t/{slot}/"}, "/var/t/3/anything", true},
		{"tsx server.ts", []string{"TMP=/a", "TEMP=/b"}, "/a/anything", true},
		{"node server.js", []string{"TMPDIR=/var/t"}, "/tmp/4242", false},
	} {
		c := &config{Command: strings.Fields(tt.command), Env: tt.env}
		if got := c.ownSocket(3)(tt.path, 4242); got != tt.want {
			t.Errorf("%s of %q with %q: %v", tt.path, tt.command, tt.env, got)
		}
	}
	if (&config{Command: words("node x.js")}).ownSocket(0)("/tmp/0", 0) {
		t.Error("the number of an unknown process is in it")
	}
}

// FuzzLauncher has any command looked at, through any number of wrappers.
func FuzzLauncher(f *testing.F) {
	for _, row := range []string{"npm start", "env -S npm", "sh -c", "env env env env env env env env env env", "node --watch x", "env -S -S -S"} {
		f.Add(row, "exec 'npm start")
	}
	f.Fuzz(func(t *testing.T, row, script string) {
		for _, command := range [][]string{strings.Fields(row), append(strings.Fields(row), script), {"sh", "-c", script}, {"env", "-S", script}} {
			if len(command) > 0 {
				_ = findLauncher(command, nil)
			}
		}
		for _, word := range lastCommand(script) {
			if strings.ContainsAny(word, "\x00") && !strings.ContainsAny(script, "\x00") {
				t.Errorf("%q has %q", script, word)
			}
		}
	})
}
