//go:build unix

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// commandLine is what the flags say, before any value was looked at.
type commandLine struct {
	action  action
	values  map[string]setValue
	dash    bool     // there was a "--"
	command []string // what followed it
}

// flagValue collects the values of one flag as they are. Looking at them is the
// business of the setting, whichever source they came from.
type flagValue struct{ values []string }

func (f *flagValue) String() string { return strings.Join(f.values, " ") }
func (f *flagValue) Type() string   { return "value" }
func (f *flagValue) Set(v string) error {
	f.values = append(f.values, v)
	return nil
}

// newFlagSet returns every flag of rrd.
func newFlagSet() *pflag.FlagSet {
	fs := pflag.NewFlagSet("rrd", pflag.ContinueOnError)
	fs.SetInterspersed(false) // a word ends the flags, so that it can be told about "--"
	fs.Usage = func() {}
	for _, s := range settings {
		fs.VarP(&flagValue{}, s.name, s.short, "")
		fs.Lookup(s.name).NoOptDefVal = s.bare
	}
	fs.Bool("check", false, "")
	fs.Bool("version", false, "")
	fs.BoolP("help", "h", false, "")
	return fs
}

func parseFlags(args []string) (*commandLine, error) {
	fs := newFlagSet()
	if err := fs.Parse(args); err != nil {
		return nil, flagError(err, fs, "rrd --help")
	}
	line := &commandLine{values: map[string]setValue{}}
	for a, name := range map[action]string{actionCheck: "check", actionVersion: "version", actionHelp: "help"} {
		if on, err := fs.GetBool(name); err == nil && on {
			line.action = max(line.action, a) // help before version before check
		}
	}
	if line.action == actionHelp || line.action == actionVersion {
		return line, nil
	}
	for _, s := range settings {
		f := fs.Lookup(s.name)
		values := f.Value.(*flagValue).values
		if !f.Changed {
			continue
		}
		if values[len(values)-1] == "--" {
			return nil, fmt.Errorf("--%s: there is no value before -- (from %s): add one", s.name, fromFlag)
		}
		line.values[s.name] = setValue{values, fromFlag}
	}
	line.dash = fs.ArgsLenAtDash() == 0
	switch {
	case !line.dash && fs.NArg() > 0:
		if bare := lastBare(args[:len(args)-fs.NArg()]); bare != "" {
			return nil, fmt.Errorf("--%s: takes a value only after =: write --%[1]s=%s, or -- before the command", bare, oneWord(fs.Arg(0)))
		}
		return nil, strayWord(fs.Arg(0), fs.NArg() == len(args))
	case line.dash && fs.NArg() == 0:
		return nil, errors.New("there is no command after --: add one, or leave -- away for the built-in worker")
	case line.dash && fs.Arg(0) == "":
		return nil, errors.New(`"" is no command: name a program after --`)
	case line.dash:
		line.command = fs.Args()
	}
	return line, nil
}

// strayWord is the error about a word that is neither a flag nor behind "--".
func strayWord(word string, first bool) error {
	if word == compareWord {
		return errors.New("compare must be the first word: write rrd compare and then its flags, or -- before a command of that name")
	}
	mean := ""
	if first {
		mean = suggestion(word, []string{compareWord}, "rrd ")
	}
	return fmt.Errorf("%q is no flag%s: put -- before the command, as in rrd [flags] -- %s", word, mean, oneWord(word))
}

// lastBare returns the setting that the last of words names without the value
// that it may have, or "".
func lastBare(words []string) string {
	if len(words) == 0 {
		return ""
	}
	name, is := strings.CutPrefix(words[len(words)-1], "--")
	if s := findSetting(name); is && s != nil && s.bare != "" {
		return name
	}
	return ""
}

// flagError puts what pflag has to say into our form. help is what shows the flags
// of fs.
func flagError(err error, fs *pflag.FlagSet, help string) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if in := unknown.GetSpecifiedShortnames(); in != "" {
			return fmt.Errorf("-%s: there is no such flag (in %q): see %s", oneWord(string([]rune(name)[:1])), "-"+in, help)
		}
		return fmt.Errorf("--%s: there is no such flag%s: see %s", oneWord(name), suggestion(name, flagNames(fs), "--"), help)
	case errors.As(err, &missing):
		return fmt.Errorf("--%s: there is no value: write --%s=VALUE", missing.GetFlag().Name, missing.GetFlag().Name)
	case errors.As(err, &invalid): // only the three without a value can be
		return fmt.Errorf("--%s: %q is not true or false (from %s)", invalid.GetFlag().Name, invalid.GetValue(), fromFlag)
	}
	return fmt.Errorf("%s: see %s", oneWord(err.Error()), help)
}

func flagNames(fs *pflag.FlagSet) (names []string) {
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// oneWord keeps text of unknown making from breaking a line.
func oneWord(s string) string {
	if q := fmt.Sprintf("%q", s); q != `"`+s+`"` {
		return q
	}
	return s
}
