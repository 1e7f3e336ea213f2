//go:build unix

package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"rrd/worker/pool"
)

// Some programs written for Node start the real program in a second process. The first
// process takes the channel and does not pass it on, so the second one binds the port by
// itself: no worker is ever ready, and all but one fail with EADDRINUSE.

// packageManagers always start a second process. The second line has the names of their
// scripts.
var packageManagers = []string{"npm", "npx", "pnpm", "pnpx", "yarn", "yarnpkg", "corepack",
	"npm-cli.js", "npx-cli.js", "pnpm.cjs", "pnpx.cjs", "yarn.js", "corepack.js"}

// runners may start one, depending on their version and flags. The value is the command to
// run instead.
var runners = map[string]string{
	"tsx":         "node --import tsx server.ts",
	"ts-node":     "node -r ts-node/register server.ts",
	"ts-node-esm": "node --loader ts-node/esm server.ts",
	"ts-node-dev": "node -r ts-node/register server.ts",
	"nodemon":     "node server.js, and rrdctl reload after a change",
	"nodemon.js":  "node server.js, and rrdctl reload after a change",
	"cross-env":   "node server.js, with the variables as --env",
}

// wrappers run the command in their arguments, in their own process or as their only child.
var wrappers = []string{"env", "exec", "nice", "nohup", "setsid", "stdbuf", "timeout", "tini", "dumb-init", "catatonit"}

var shells = []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}

// launcher is the Node program that a command starts first.
type launcher struct {
	// swallows is the program or flag that keeps the channel for itself, or "".
	swallows string
	// runner is one of runners, or "".
	runner string
}

// findLauncher finds the launcher in a command, behind shells and wrappers. target
// returns the file of a program's name. If it is nil, names are not looked up.
func findLauncher(words []string, target func(name string) string) (l launcher) {
	words = unwrap(words)
	if len(words) == 0 {
		return l
	}
	names := []string{filepath.Base(words[0])}
	if target != nil {
		names = append(names, filepath.Base(target(words[0])))
	}
	if pool.NamesNode(words[0]) {
		flags := pool.NodeFlags(words)
		if name := secondNode(flags); name != "" {
			return launcher{swallows: "node " + name}
		}
		if rest := words[1+len(flags):]; len(rest) > 0 {
			names = []string{filepath.Base(rest[0])}
			if rest[0] == "--" && len(rest) > 1 {
				names[0] = filepath.Base(rest[1])
			}
		}
	}
	for _, name := range names {
		if slices.Contains(packageManagers, name) {
			return launcher{swallows: names[0]}
		}
		if runners[name] != "" {
			l.runner = name
		}
	}
	return l
}

// secondNode returns the flag with which Node runs the program in another process, or "".
func secondNode(flags []string) string {
	for _, f := range flags {
		switch name := pool.NodeFlagName(f); name {
		case "--run", "--watch", "--watch-path":
			return name
		}
	}
	return ""
}

// unwrap returns the words of the program that a command comes to run, and its arguments.
func unwrap(words []string) []string {
	for range 8 { // no real command is deeper
		if len(words) == 0 {
			return nil
		}
		base := filepath.Base(words[0])
		switch {
		case slices.Contains(shells, base):
			script, ok := shellScript(words)
			if !ok {
				return words
			}
			words = lastCommand(script)
		case slices.Contains(wrappers, base):
			inner := wrapped(words[1:])
			if inner == nil {
				return words
			}
			words = inner
		default:
			return words
		}
	}
	return words
}

// envValueFlags are the flags of env whose value is the next word.
var envValueFlags = []string{"-u", "--unset", "-C", "--chdir"}

// wrapped returns the words of a wrapper's own command, from the first name of a program
// that matters here. It returns nil if no word is such a name.
func wrapped(words []string) []string {
	for i, word := range words {
		base := filepath.Base(word)
		switch {
		case i > 0 && slices.Contains(envValueFlags, words[i-1]):
			continue
		case pool.NamesNode(word), slices.Contains(packageManagers, base), runners[base] != "",
			slices.Contains(shells, base), slices.Contains(wrappers, base):
			return words[i:]
		}
		split, ok := strings.CutPrefix(word, "--split-string=") // env -S "npm start"
		if !ok {
			split, ok = strings.CutPrefix(word, "-S")
		}
		if ok {
			return wrapped(append(strings.Fields(split), splitFirst(words[i+1:], split == "")...))
		}
	}
	return nil
}

// splitFirst splits the first word at its spaces if it is the value of a flag.
func splitFirst(words []string, value bool) []string {
	if !value || len(words) == 0 {
		return words
	}
	return append(strings.Fields(words[0]), words[1:]...)
}

// shellScript returns the script of sh -c SCRIPT.
func shellScript(words []string) (script string, ok bool) {
	for i := 1; i < len(words)-1; i++ {
		word := words[i]
		switch {
		case slices.Contains(shells, word): // busybox sh
		case strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "--"):
			if strings.HasSuffix(word, "c") {
				return words[i+1], true
			}
			if strings.HasSuffix(word, "o") {
				i++ // -o OPTION
			}
		case strings.HasPrefix(word, "--"):
		default:
			return "", false // a file
		}
	}
	return "", false
}

// lastCommand returns the words of the last simple command of a shell script. It leaves out
// a pipe or || after that command. It removes quotes and leaves variables as they are.
func lastCommand(script string) (words []string) {
	var word strings.Builder
	inWord, quote, skips, begins := false, rune(0), false, true
	end := func() {
		if inWord && !skips {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	for _, r := range strings.NewReplacer("||", "|", "&&", ";", "\\\n", " ").Replace(script) {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '{' || r == '}') && !inWord: // of a group
		case quote == 0 && (r == ' ' || r == '\t'):
			end()
		case quote == 0 && r == '|':
			end()
			skips = true
		case quote == 0 && strings.ContainsRune(";&\n()", r):
			end()
			begins = true
		default:
			if begins && !inWord { // not before: the script may end here
				words, begins, skips = nil, false, false
			}
			inWord = true
			if quote == 0 && (r == '\'' || r == '"') {
				quote = r
			} else {
				word.WriteRune(r)
			}
		}
	}
	end()
	for len(words) > 0 && (strings.Contains(words[0], "=") || words[0] == "!") {
		words = words[1:]
	}
	return words
}

// ownSocket returns a function for the unix sockets of a slot. The function reports whether
// a path belongs to a socket that a tool made for itself. Such a socket makes no worker
// ready. It is in the temporary directory and has the pid of the process in its path, so
// that no other worker could share it. If the command is one of runners, any path in the
// temporary directory is such a socket.
func (c *config) ownSocket(slot int) func(path string, pid int) bool {
	dir := c.tempDir(slot)
	runner := findLauncher(c.Command, nil).runner != ""
	return func(path string, pid int) bool {
		rest, ok := strings.CutPrefix(filepath.Clean(path), dir+"/")
		return ok && (runner || pid > 0 && hasNumber(rest, strconv.Itoa(pid)))
	}
}

// hasNumber reports whether s contains number, and not as a part of a longer number.
func hasNumber(s, number string) bool {
	return slices.Contains(strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }), number)
}

// tempDir returns the directory of Node's os.tmpdir() in the worker of a slot.
func (c *config) tempDir(slot int) string {
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		if v := c.workerVariable(name); v != "" {
			return filepath.Clean(strings.ReplaceAll(v, "{slot}", strconv.Itoa(slot)))
		}
	}
	return "/tmp"
}

// checkLauncher refuses a command that keeps the channel from the program. It warns of a
// command that may do so.
func (c *config) checkLauncher(h *host) error {
	command := slices.Clone(c.Command)
	command[0] = firstWorker.Replace(command[0])
	l := findLauncher(command, func(name string) string { return c.targetOf(h, name) })
	if l.swallows == "" {
		if flag := secondNode(strings.Fields(c.workerVariable("NODE_OPTIONS"))); flag != "" {
			l.swallows = "NODE_OPTIONS with " + flag
		}
	}
	switch {
	case l.swallows != "":
		return fmt.Errorf("command %q cannot be a Node worker, because %s starts the program in a second process: run the program itself, as in rrd -- node server.js",
			strings.Join(c.Command, " "), l.swallows)
	case l.runner != "":
		c.Warnings = append(c.Warnings, fmt.Sprintf("command: %s may start the program in a second process, which rrd cannot serve: run %s", l.runner, runners[l.runner]))
	}
	return nil
}

// targetOf returns the file of a program's name in a worker, or name if there is none.
func (c *config) targetOf(h *host, name string) string {
	path, err := c.pathOf(name)
	if err != nil {
		return name // the start reports the error
	}
	target, _ := h.program(path)
	return target
}

// workerVariable returns the value of a variable in the workers.
func (c *config) workerVariable(name string) string {
	v, ok := lookupVariable(c.Env, name)
	if !ok {
		v, _ = lookupVariable(c.environ, name)
	}
	return v
}
