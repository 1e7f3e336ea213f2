package pool

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// What a command says about Node, and the ports of its inspector: every worker
// needs one of its own, since all but the first to ask for the same one get none.
// Slot N listens N above what the command says. Facts about options are those of
// "Command-line API" in Node's documentation, tried with Node 20.

const (
	defaultInspectPort = 9229
	leastInspectPort   = 1024 // Node refuses lower ones, but for 0: any
	mostInspectPort    = 65535
)

// NamesNode says whether a program is called as Node's own is: node, nodejs, or
// node with a version, as in node22 or node-20.1.
func NamesNode(program string) bool {
	base := path.Base(program)
	if base == "nodejs" {
		return true
	}
	version, ok := strings.CutPrefix(base, "node")
	return ok && strings.Trim(strings.TrimPrefix(version, "-"), "0123456789.") == "" && version != "-"
}

// NodeFlags returns the words of a command that Node takes for itself: those
// between it and the script. They share argv's memory. It returns nil if argv
// does not start with Node.
func NodeFlags(argv []string) []string {
	if len(argv) == 0 || !NamesNode(argv[0]) {
		return nil
	}
	for i := 1; i < len(argv); i++ {
		switch word := argv[i]; {
		case word == "--", word == "-", !strings.HasPrefix(word, "-"):
			return argv[1:i]
		case takesNextWord(word):
			i++
		}
	}
	return argv[1:]
}

// nodeValueFlags are Node's options whose value may be the next word. Taking the
// value of one that is missing here for the script leaves what follows alone.
var nodeValueFlags = strings.Fields(`-C -e -r --build-snapshot-config --conditions --cpu-prof-dir
	--cpu-prof-interval --cpu-prof-name --debug-port --diagnostic-dir --disable-proto --disable-warning
	--dns-result-order --env-file --env-file-if-exists --eval --experimental-default-type
	--experimental-loader --experimental-sea-config --heap-prof-dir --heap-prof-interval
	--heap-prof-name --heapsnapshot-near-heap-limit --heapsnapshot-signal --icu-data-dir --import
	--input-type --inspect-port --inspect-publish-uid --loader --localstorage-file
	--max-http-header-size --network-family-autoselection-attempt-timeout --openssl-config
	--redirect-warnings --report-dir --report-directory --report-filename --report-signal --require
	--secure-heap --secure-heap-min --snapshot-blob --stack-trace-limit --test-concurrency
	--test-name-pattern --test-reporter --test-reporter-destination --test-shard --test-timeout --title
	--tls-cipher-list --tls-keylog --trace-event-categories --trace-event-file-pattern
	--trace-require-module --unhandled-rejections --use-largepages --v8-pool-size --watch-path`)

func takesNextWord(flag string) bool {
	return !strings.Contains(flag, "=") && slices.Contains(nodeValueFlags, NodeFlagName(flag))
}

// NodeFlagName returns a flag without its value, spelled as Node's documentation does:
// Node takes underscores for dashes.
func NodeFlagName(flag string) string {
	name, _, _ := strings.Cut(flag, "=")
	if !strings.HasPrefix(name, "--") {
		return name
	}
	return strings.ReplaceAll(name, "_", "-")
}

// nodeArgv returns argv with inspector ports of slot's own. Only Node's own words
// are looked at: what comes after the script is the program's.
func nodeArgv(argv []string, slot int) []string {
	flags := NodeFlags(argv)
	if moved := moveInspector(flags, slot); moved != nil {
		return slices.Concat(argv[:1], moved, argv[1+len(flags):])
	}
	return argv
}

// nodeOptions does the same for a value of NODE_OPTIONS, whose words are separated
// by spaces and may have parts in double quotes.
func nodeOptions(value string, slot int) string {
	words := splitNodeOptions(value)
	if moved := moveInspector(words, slot); moved != nil {
		return strings.Join(moved, " ")
	}
	return value
}

// splitNodeOptions leaves quotes as they are, so that joining the words again with
// spaces means the same.
func splitNodeOptions(value string) (words []string) {
	start, quoted := 0, false
	for i := 0; i <= len(value); i++ {
		switch {
		case i == len(value) || value[i] == ' ' && !quoted:
			if i > start {
				words = append(words, value[start:i])
			}
			start = i + 1
		case value[i] == '"':
			quoted = !quoted
		case value[i] == '\\' && quoted:
			i++
		}
	}
	return words
}

// moveInspector returns words with every inspector port moved up by slot, or nil
// where nothing is to be changed. A flag without a port means the default one,
// unless another flag names it.
func moveInspector(words []string, slot int) []string {
	if slot == 0 {
		return nil
	}
	var moved []string
	set := func(i int, word string) {
		if moved == nil {
			moved = slices.Clone(words)
		}
		moved[i] = word
	}
	named := false // somewhere, a port
	var bare []int // flags without one
	for i := 0; i < len(words); i++ {
		name, value, hasValue := strings.Cut(words[i], "=")
		switch NodeFlagName(name) {
		case "--inspect", "--inspect-brk", "--inspect-wait":
			if !hasValue {
				bare = append(bare, i)
				continue
			}
		case "--inspect-port", "--debug-port":
			if !hasValue {
				if i++; i < len(words) {
					if at, ok := moveAddress(words[i], slot); ok {
						named = true
						set(i, at)
					}
				}
				continue
			}
		default:
			if takesNextWord(words[i]) {
				i++
			}
			continue
		}
		if at, ok := moveAddress(value, slot); ok {
			named = true
			set(i, name+"="+at)
		}
	}
	if !named {
		for _, i := range bare {
			set(i, words[i]+"="+strconv.Itoa(movePort(defaultInspectPort, slot)))
		}
	}
	return moved
}

// moveAddress moves the port of [HOST:]PORT or HOST, as Node reads them: without a
// colon, digits are a port. What Node would refuse is left for it to refuse.
func moveAddress(at string, slot int) (string, bool) {
	host, port := "", at
	switch i := strings.LastIndexByte(at, ':'); {
	case at == "":
		return "", false
	case i >= 0 && !strings.HasSuffix(at, "]"):
		host, port = at[:i+1], at[i+1:]
	case strings.Trim(at, "0123456789") != "":
		host, port = at+":", strconv.Itoa(defaultInspectPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n != 0 && n < leastInspectPort {
		return "", false
	}
	return host + strconv.Itoa(movePort(int(n), slot)), true
}

// movePort begins again at the lowest port after the highest, as Node's primary
// does. Port 0 is a different one for everybody already.
func movePort(base, slot int) int {
	if base == 0 {
		return 0
	}
	if n := base + slot; n <= mostInspectPort {
		return n
	}
	return base + slot - mostInspectPort + leastInspectPort - 1
}
