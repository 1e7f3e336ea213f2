package pool

import (
	"fmt"
	"slices"
	"strings"
)

// Template is what workers are started with and a roll may change. Its fields are
// those of Config.
type Template struct {
	Argv       []string
	Dir        string
	ExtraEnv   []string
	Credential *Credential
	Account    *Account
	NoFile     uint64
}

// template is a Template with the generation that it is of.
type template struct {
	Template
	generation int
	hardLimit  bool // NoFile was given
}

// template returns that of c.
func (c *Config) template() Template {
	return Template{Argv: c.Argv, Dir: c.Dir, ExtraEnv: c.ExtraEnv, Credential: c.Credential, Account: c.Account, NoFile: c.NoFile}
}

func newTemplate(t Template, generation int) *template {
	n := &template{Template: t, generation: generation, hardLimit: t.NoFile > 0}
	n.Argv, n.ExtraEnv = slices.Clone(t.Argv), slices.Clone(t.ExtraEnv)
	if n.NoFile == 0 {
		n.NoFile = OriginalNoFile()
	}
	return n
}

func (t *Template) check() error {
	if len(t.Argv) == 0 || t.Argv[0] == "" {
		return fmt.Errorf("command is empty")
	}
	for _, word := range t.Argv {
		if strings.ContainsRune(word, 0) {
			return fmt.Errorf("command word %q: contains a NUL byte", word)
		}
	}
	return checkExtraEnv(t.ExtraEnv)
}
