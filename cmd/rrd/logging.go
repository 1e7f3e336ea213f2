//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"rrd/metrics"
)

// logTime is RFC 3339 with microseconds; times are UTC.
const logTime = "2006-01-02T15:04:05.000000Z07:00"

// logLevels are the values of --log-level.
var logLevels = []string{"debug", "info", "warn", "error"}

func applyLogLevel(_ *host, c *config, v string) (err error) {
	var name string
	if err = choice(&name, v, logLevels); err != nil {
		return err
	}
	c.LogLevel, err = zerolog.ParseLevel(name)
	return err
}

// newLogger returns the logger of the whole program. It writes to w, which is
// stderr, one write a message. Every message that is written is counted in
// counter.
//
// Messages are constant text; whatever came from outside is a field, because
// only fields are escaped on a console.
func newLogger(w io.Writer, terminal bool, environ []string, c *config, counter *metrics.LogCounter) zerolog.Logger {
	return newGatedLogger(w, terminal, environ, c, newLogGate(c.LogLevel, counter), false)
}

// newGatedLogger is newLogger with a level that can change, and with its records
// kept for who follows them.
func newGatedLogger(w io.Writer, terminal bool, environ []string, c *config, gate *logGate, keep bool) zerolog.Logger {
	zerolog.TimeFieldFormat = logTime
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
	zerolog.DurationFieldUnit = time.Second // fields are named duration_s
	format := c.LogFormat
	if format == "auto" {
		format = "json"
		if terminal {
			format = "console"
		}
	}
	formatted := func(w io.Writer) io.Writer {
		if format != "console" {
			return escaper{w}
		}
		return zerolog.ConsoleWriter{
			Out: w, NoColor: !terminal || !wantsColor(environ),
			TimeFormat: logTime, TimeLocation: time.UTC, FormatMessage: consoleText, FormatFieldValue: consoleText,
		}
	}
	gated := gatedWriter{Writer: formatted(w), gate: gate, keep: keep}
	if gate.journal {
		gated.byLevel = make(map[zerolog.Level]io.Writer)
		for level := zerolog.TraceLevel; level <= zerolog.NoLevel; level++ {
			gated.byLevel[level] = formatted(priorityWriter{w, level})
		}
	}
	return zerolog.New(gated).Hook(gate).With().Timestamp().Logger()
}

// consoleText is for messages, which ConsoleWriter writes as they are (the second
// net under the rule that messages are constants), and for values: it quotes
// strings, but not those in lists.
func consoleText(v any) string { return plain(fmt.Sprintf("%s", v)) }

// plain replaces what a terminal, or a reader of lines, may take for more than a
// character: see steers.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || steers(r) {
			return '?'
		}
		return r
	}, s)
}

// steers reports whether a character above the ASCII controls is a control too:
// DEL, C1 (U+009B begins a command like ESC and [), the separators of lines and
// paragraphs, and what turns the direction of the text.
func steers(r rune) bool {
	return r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// escaper escapes in JSON what is legal there and yet may steer who looks at it.
// Such characters are in strings only.
type escaper struct{ w io.Writer }

func (e escaper) Write(p []byte) (int, error) {
	if bytes.IndexFunc(p, steers) < 0 {
		return e.w.Write(p)
	}
	b := make([]byte, 0, len(p)+64)
	for _, r := range string(p) {
		if steers(r) {
			b = fmt.Appendf(b, `\u%04x`, r)
		} else {
			b = utf8.AppendRune(b, r)
		}
	}
	if _, err := e.w.Write(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

// wantsColor follows https://no-color.org and the terminals that have none.
func wantsColor(environ []string) bool {
	return !slices.ContainsFunc(environ, func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		return name == "NO_COLOR" && value != "" || kv == "TERM=dumb"
	})
}

// isTerminal says whether a person sees what is written to f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && !isNull(info)
}

// isNull says whether info is of /dev/null, a character device that is no
// terminal.
func isNull(info os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(info, null)
}

// logWarnings says what was odd about the configuration.
func logWarnings(log zerolog.Logger, c *config) {
	for _, w := range c.Warnings {
		log.Warn().Str("event", "config.warning").Str("reason", w).Msg("configuration")
	}
}
