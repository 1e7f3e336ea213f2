//go:build unix

package main

import (
	"strings"
	"testing"
)

// Every mistake is one line that names the option, the value, where it came
// from and what to do.
func TestMistakes(t *testing.T) {
	env := func(kv ...string) []string { return kv }
	for _, x := range []struct {
		args, environ []string
		file          string
		want          string
	}{
		// The command.
		{args: words("./myapp"), want: `"./myapp" is no flag: put -- before the command, as in rrd [flags] -- ./myapp`},
		{args: words("-w 4 ./myapp --port 80"), want: `"./myapp" is no flag: put -- before the command, as in rrd [flags] -- ./myapp`},
		{args: words("myapp -- x"), want: `"myapp" is no flag: put -- before the command, as in rrd [flags] -- myapp`},
		{args: words("compar"), want: `"compar" is no flag (did you mean rrd compare?): put -- before the command, as in rrd [flags] -- compar`},
		{args: words("-w 4 compar"), want: `"compar" is no flag: put -- before the command, as in rrd [flags] -- compar`},
		{args: words("-w 4 compare"), want: `compare must be the first word: write rrd compare and then its flags, or -- before a command of that name`},
		{args: words("--"), want: `there is no command after --: add one, or leave -- away for the built-in worker`},
		{args: words("--config /r.toml --"), file: `command = ["a"]`, want: `there is no command after --: add one, or leave -- away for the built-in worker`},
		{args: []string{"--", ""}, want: `"" is no command: name a program after --`},
		{args: words("--listen -- app"), want: `--listen: there is no value before -- (from flag): add one`},

		// Flags themselves.
		{args: words("--wrkers=4"), want: `--wrkers: there is no such flag (did you mean --workers?): see rrd --help`},
		{args: words("--quux"), want: `--quux: there is no such flag: see rrd --help`},
		{args: words("-x"), want: `-x: there is no such flag (in "-x"): see rrd --help`},
		{args: words("-wx"), want: `--workers: "x" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("--workers"), want: `--workers: there is no value: write --workers=VALUE`},
		{args: words("--check=perhaps"), want: `--check: "perhaps" is not true or false (from flag)`},
		{args: words("---"), want: `bad flag syntax: ---: see rrd --help`},

		// Numbers.
		{environ: env("RRD_WORKERS=four"), want: `--workers: "four" is not a number from 1 to 1024 or auto (from RRD_WORKERS)`},
		{args: words("-w 0"), want: `--workers: "0" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("-w 1025"), want: `--workers: "1025" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("--workers=-1"), want: `--workers: "-1" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("--workers="), want: `--workers: "" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("--workers=+4"), want: `--workers: "+4" is not a number from 1 to 1024 or auto (from flag)`},
		{args: words("--queue-limit 0"), want: `--queue-limit: "0" is not a number from 1 to 1048576 (from flag)`},
		{args: words("--handoff-window 2000"), want: `--handoff-window: "2000" is not a number from 1 to 1024 (from flag)`},
		{args: words("--rescue-limit -- a"), want: `--rescue-limit: there is no value before -- (from flag): add one`},
		{args: words("--worker-nofile many"), want: `--worker-nofile: "many" is not a number from 1 to 1073741824 (from flag)`},

		// Durations.
		{args: words("--drain-timeout 30"), want: `--drain-timeout: "30" has no unit: write 30s or 30ms or off (from flag)`},
		{args: words("--respawn-min 0.5"), want: `--respawn-min: "0.5" has no unit: write 0.5s or 0.5ms (from flag)`},
		{args: words("--ready-max-wait 0"), want: `--ready-max-wait: "0" is not above zero: write a longer one, or off for no limit (from flag)`},
		{args: words("--canary-time 1e9"), want: `--canary-time: "1e9" is not a duration: write one like 500ms, 5s or 1m30s or off (from flag)`},
		{args: words("--respawn-min NaN"), want: `--respawn-min: "NaN" is not a duration: write one like 500ms, 5s or 1m30s (from flag)`},
		{args: words("--config /r.toml"), file: "drain-timeout = 30", want: `--drain-timeout: "30" has no unit: write 30s or 30ms or off (from /r.toml:1)`},
		{args: words("--stop-timeout 0s"), want: `--stop-timeout: "0s" is not above zero: write a longer one, or off for no limit (from flag)`},
		{args: words("--respawn-max -1s"), want: `--respawn-max: "-1s" is not above zero: write one like 500ms or 5s (from flag)`},
		{args: words("--hang-timeout 30sec"), want: `--hang-timeout: "30sec" is not a duration: write one like 500ms, 5s or 1m30s or off (from flag)`},
		{args: words("--respawn-min off"), want: `--respawn-min: "off" is not a duration: write one like 500ms, 5s or 1m30s (from flag)`},
		{args: words("--drain-timeout 9000h"), want: `--drain-timeout: "9000h" is longer than 8760h0m0s: write a shorter one or off (from flag)`},
		{args: words("--respawn-max 10ms"), want: `--respawn-max: "10ms" is below --respawn-min 1s (from default): raise it or lower that (from flag)`},

		{args: words("--lame-duck 5"), want: `--lame-duck: "5" has no unit: write 5s or 5ms or off (from flag)`},
		{args: words("--workers 2 --ready-min 3"), want: `--ready-min: "3" is more than --workers 2 (from flag), so rrd would never be ready: lower it or raise --workers (from flag)`},
		{args: words("--ready-min 0"), want: `--ready-min: "0" is not a number from 1 to 1024 (from flag)`},
		{args: words("--ready-max-wait 0s"), want: `--ready-max-wait: "0s" is not above zero: write a longer one, or off for no limit (from flag)`},
		{args: words("--drain-spread 40s"), want: `--drain-spread: "40s" is longer than --drain-timeout 30s (from default): lower it or raise that (from flag)`},

		// Recycling and hooks.
		{args: words("--max-connections-per-worker 0"), want: `--max-connections-per-worker: "0" is not a number from 1 to 1000000000 or off (from flag)`},
		{args: words("--max-connections-per-worker 5 --policy none"), want: `--max-connections-per-worker: "5" needs --policy rr: under none rrd does not see the connections: use --max-age (from flag)`},
		{args: words("--max-age 1"), want: `--max-age: "1" has no unit: write 1s or 1ms or off (from flag)`},
		{args: words("--max-rss 512"), want: `--max-rss: "512" has no unit: write 512MB or 512MiB, or off (from flag)`},
		{args: words("--max-rss 0"), want: `--max-rss: "0" is not a size: write one like 512MB or 2GiB, or off (from flag)`},
		{args: words("--max-rss 1.5GB"), want: `--max-rss: "1.5GB" is not a size: write one like 512MB or 2GiB, or off (from flag)`},
		{args: words("--max-rss 5m"), want: `--max-rss: "5m" is not a size: write one like 512MB or 2GiB, or off (from flag)`},
		{args: words("--max-rss 0MB"), want: `--max-rss: "0MB" is not a size: write one like 512MB or 2GiB, or off (from flag)`},
		{args: []string{"--hook-before-start", " "}, want: `--hook-before-start: " " is no command: write one for /bin/sh, or leave the option out (from flag)`},
		{args: words("--config /r.toml"), file: `hook-worker-exit = ""`, want: `--hook-worker-exit: "" is no command: write one for /bin/sh, or leave the option out (from /r.toml:1)`},
		{environ: env("RRD_HOOK_TIMEOUT=0s"), want: `--hook-timeout: "0s" is not above zero: write a longer one, or off for no limit (from RRD_HOOK_TIMEOUT)`},

		// Choices.
		{args: words("-p fair"), want: `--policy: "fair" is not one of auto, rr, none, reuseport (from flag)`},
		{environ: env("RRD_POLICY=RR"), want: `--policy: "RR" is not one of auto, rr, none, reuseport (from RRD_POLICY)`},
		{args: words("--worker-protocol http"), want: `--worker-protocol: "http" is not one of auto, rrd, node, listen-fds (from flag)`},
		{args: words("--worker-protocol node --policy none --listen 127.0.0.1:8080,as=3000 -- a"), want: `--listen: "127.0.0.1:8080,as=3000" has as=, and under --policy none Node has the socket itself and sees that it has another port: name the port that the program asks for, or add --policy rr (from flag)`},
		{args: words("--worker-protocol listen-fds -- a"), want: `--worker-protocol: "listen-fds" needs workers that accept themselves, and the policy is rr: add --policy none or --policy reuseport (from flag)`},
		{args: words("--worker-protocol node"), want: `--worker-protocol: "node" needs a Node program, and there is no command: add one after -- (from flag)`},
		{args: words("--worker-max-connections-active 9 -- node a.js"), want: `--worker-max-connections-active: "9" needs workers that report closed connections, and Node does not: remove it, and set server.maxConnections in the program (from flag)`},
		{environ: env("RRD_READY_ON_MESSAGE=on"), args: words("-- ./app"), want: `--ready-on-message: "on" is for Node programs, and the command is none that rrd knows for one: remove it, or add --worker-protocol node (from RRD_READY_ON_MESSAGE)`},
		{args: words("--ready-on-message=maybe"), want: `--ready-on-message: "maybe" is not one of on, off (from flag)`},
		{args: words("--ready-on-message on -- node a.js"), want: `--ready-on-message: takes a value only after =: write --ready-on-message=on, or -- before the command`},
		{args: words("--ready-on-message node a.js"), want: `--ready-on-message: takes a value only after =: write --ready-on-message=node, or -- before the command`},
		{args: words("--restart sometimes"), want: `--restart: "sometimes" is not one of always, on-failure, never (from flag)`},
		{args: words("--stop-signal KILL"), want: `--stop-signal: "KILL" is not one of TERM, INT, QUIT, HUP, USR1, USR2, WINCH, ABRT (from flag)`},
		{args: words("--hang-signal TERM"), want: `--hang-signal: "TERM" is not one of KILL, ABRT (from flag)`},
		{args: words("--worker-max-connections-active 1000001"), want: `--worker-max-connections-active: "1000001" is not a number from 0 to 1000000 (from flag)`},
		{args: words("--tls-ticket-rotate 999ms"), want: `--tls-ticket-rotate: "999ms" is shorter than 1s: write a longer one, like 24h, or off (from flag)`},
		{args: words("--tls-ticket-rotate 24"), want: `--tls-ticket-rotate: "24" has no unit: write 24s or 24ms or off (from flag)`},
		{args: words("--unhealthy-after 0s"), want: `--unhealthy-after: "0s" is not above zero: write a longer one, or off for no limit (from flag)`},
		{args: words("--worker-output syslog"), want: `--worker-output: "syslog" is not one of auto, raw, prefix, json (from flag)`},
		{args: words("--log-level loud"), want: `--log-level: "loud" is not one of debug, info, warn, error (from flag)`},
		{args: words("--log-format xml"), want: `--log-format: "xml" is not one of auto, console, json (from flag)`},

		// Environment and files.
		{args: words("--env A"), want: `--env: "A" has no =: write NAME=VALUE (from flag)`},
		{args: words("--env =secret"), want: `--env: "=..." has no name before its =: write NAME=VALUE (from flag)`},
		{args: words("--env RRD_SLOT=secret"), want: `--env: "RRD_SLOT=..." is rrd's own: no variable of a worker can start with RRD_ (from flag)`},
		{args: []string{"--env", "A=\x00"}, want: `--env: "A=..." contains a NUL byte (from flag)`},
		{args: words("--env-file /none"), want: `--env-file: "/none" cannot be read: no such file or directory (from flag)`},
		{args: words("--env-file /r.toml"), file: "A=1\n\nsecret", want: `--env-file: "/r.toml" is wrong at line 3: "..." has no =: write NAME=VALUE (from flag)`},
		{args: words("--env-file /r.toml"), file: "RRD_X=secret", want: `--env-file: "/r.toml" is wrong at line 1: "RRD_X=..." is rrd's own: no variable of a worker can start with RRD_ (from flag)`},
		{args: words("--chdir="), want: `--chdir: "" is no directory: name one (from flag)`},
		{args: words("--config /none"), want: `--config: "/none" cannot be read: no such file or directory (from flag)`},
		{environ: env("RRD_CONFIG=/none"), want: `--config: "/none" cannot be read: no such file or directory (from RRD_CONFIG)`},

		// TOML.
		{args: words("--config /r.toml"), file: "workers = 4\nworker = 3", want: `/r.toml:2: "worker" is no setting (did you mean workers?): correct or remove it`},
		{args: words("--config /r.toml"), file: "queue_limit = 3", want: `/r.toml:1: "queue_limit" is no setting (did you mean queue-limit?): correct or remove it`},
		{args: words("--config /r.toml"), file: "\n\n[server]\nworkers = 3", want: `/r.toml:3: "server" is no setting: correct or remove it`},
		{args: words("--config /r.toml"), file: "config = '/r.toml'", want: `/r.toml:1: "config" is no setting: correct or remove it`},
		{args: words("--config /r.toml"), file: "check = true", want: `/r.toml:1: "check" is no setting: correct or remove it`},
		{args: words("--config /r.toml"), file: "a.b = 1", want: `/r.toml: "a" is no setting: correct or remove it`},
		{args: words("--config /r.toml"), file: "workers = 3\nworkers = 4", want: `/r.toml:2: Key 'workers' has already been defined.: correct the TOML`},
		{args: words("--config /r.toml"), file: "\nworkers =", want: `/r.toml:2: unexpected EOF; expected value: correct the TOML`},
		{args: words("--config /r.toml"), file: "workers = [1]", want: `/r.toml:1: workers: is a list, but takes one value`},
		{args: words("--config /r.toml"), file: "workers = 'four'", want: `--workers: "four" is not a number from 1 to 1024 or auto (from /r.toml:1)`},
		{args: words("--config /r.toml"), file: "workers = 1.5", want: `--workers: "1.5" is not a number from 1 to 1024 or auto (from /r.toml:1)`},
		{args: words("--config /r.toml"), file: "workers = 2020-01-01", want: `/r.toml:1: workers: is no string: put it in quotes`},
		{args: words("--config /r.toml"), file: "[workers]\na=1", want: `/r.toml:1: workers: is a table, but takes no keys`},
		{args: words("--config /r.toml"), file: "listen = [':1', 80]", want: `/r.toml:1: listen: entry 2 of the list is no string: put it in quotes`},
		{args: words("--config /r.toml"), file: "listen = 80", want: `/r.toml:1: listen: is no string: put it in quotes`},
		{args: words("--config /r.toml"), file: "listen = []", want: `/r.toml:1: listen: is an empty list: fill or remove it`},
		{args: words("--config /r.toml"), file: "listen = ['web']", want: `--listen: "web" has no port: write it as in 127.0.0.1:80 (from /r.toml:1)`},
		{args: words("--config /r.toml"), file: "command = 'node app.js'", want: `/r.toml:1: command: is a string: write a list of words, as in command = ["node", "app.js"]`},
		{args: words("--config /r.toml"), file: "command = ['']", want: `/r.toml:1: command: "" is no command: name a program`},
		{args: words("--config /r.toml"), file: "command = []", want: `/r.toml:1: command: is an empty list: fill or remove it`},
		{args: words("--config /r.toml"), file: "[env]\n'A=' = 'x'", want: `/r.toml:1: env: "A=" contains =, which no variable's name can`},
		{args: words("--config /r.toml"), file: "[env]\nA = [1]", want: `/r.toml:1: env: "A" is no string: put it in quotes`},

		// Sockets.
		{args: words("--control rrd.sock"), want: `--control: "rrd.sock" is no path: write one with a slash, or auto or off (from flag)`},
		{args: words("--metrics /run/m.sock"), want: `--metrics: "/run/m.sock" is no address: write one like 127.0.0.1:9746 or unix:/path, or off (from flag)`},
		{args: words("--metrics 9746"), want: `--metrics: "9746" has no colon: write :9746 for every address of this machine (from flag)`},
		{args: words("--metrics="), want: `--metrics: "" is no address: write one like 127.0.0.1:9746 or unix:/path, or off (from flag)`},
	} {
		_, _, err := testHost(map[string]string{"/r.toml": x.file}).parseConfig(x.args, x.environ)
		if err == nil {
			t.Errorf("%q %q %q: no error, want %s", x.args, x.environ, x.file, x.want)
			continue
		}
		if got := err.Error(); got != x.want || strings.ContainsAny(got, "\n\r") {
			t.Errorf("%q %q %q:\n got %s\nwant %s", x.args, x.environ, x.file, got, x.want)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("a secret is shown: %s", err)
		}
	}
}

func TestEnvTable(t *testing.T) {
	c, _, err := testHost(map[string]string{"/r.toml": "env-file = '/e'\n[env]\nB = 'x y'\nA = 1\nC.D = 2", "/e": "F=1"}).parseConfig(words("--config /r.toml"), nil)
	if err == nil {
		t.Errorf("a table in the table: %v", c.Env)
	}
	c, _, err = testHost(map[string]string{"/r.toml": "env-file = '/e'\n[env]\nB = 'x y'\nA = 1\nC = true", "/e": "F=1"}).parseConfig(words("--config /r.toml"), nil)
	if err != nil || strings.Join(c.Env, ",") != "F=1,A=1,B=x y,C=true" || c.origin("env") != "/r.toml:2" {
		t.Errorf("%v %v", c, err)
	}
	c, _, err = testHost(map[string]string{"/r.toml": "env.A = 'b'"}).parseConfig(words("--config /r.toml"), nil)
	if err != nil || strings.Join(c.Env, ",") != "A=b" || c.origin("env") != "/r.toml" {
		t.Errorf("dotted: %v %v", c, err)
	}
}

func TestEditDistance(t *testing.T) {
	for _, x := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "bc", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(x.a, x.b); got != x.want {
			t.Errorf("%q to %q: %d, want %d", x.a, x.b, got, x.want)
		}
	}
}

// Nothing that can be typed makes the parser panic or answer with two lines.
func FuzzParseConfig(f *testing.F) {
	f.Add("--listen\x1fa=unix:/x,mode=7\x1f--workers\x1f4", "RRD_LISTEN=:80 :81", "workers = 4\n[env]\nA='b'")
	f.Add("-l\x1f[::1%lo]:80\x1f--env\x1fA=B", "RRD_X=1", "listen = [':1']")
	f.Fuzz(func(t *testing.T, args, environ, file string) {
		h := testHost(map[string]string{"/r.toml": file})
		_, _, err := h.parseConfig(append([]string{"--config=/r.toml"}, strings.Split(args, "\x1f")...), strings.Split(environ, "\x1f"))
		if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("more than a line: %q", err)
		}
	})
}
