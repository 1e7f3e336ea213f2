package pool

import (
	"slices"
	"testing"
)

// With an account HOME, USER and LOGNAME are its own, or unset. ExtraEnv wins.
func TestAccountEnvironment(t *testing.T) {
	root := []string{"HOME=/root", "USER=root", "PATH=/bin"}
	for name, x := range map[string]struct {
		env, extra []string
		account    *Account
		want       []string
	}{
		"none":          {root, nil, nil, []string{"HOME=/root", "PATH=/bin", "USER=root"}},
		"known":         {root, nil, &Account{"web", "/srv/web"}, []string{"HOME=/srv/web", "LOGNAME=web", "PATH=/bin", "USER=web"}},
		"unset before":  {nil, nil, &Account{"web", "/srv/web"}, []string{"HOME=/srv/web", "LOGNAME=web", "USER=web"}},
		"no home":       {root, nil, &Account{Name: "web"}, []string{"LOGNAME=web", "PATH=/bin", "USER=web"}},
		"not known":     {append(root, "LOGNAME=root"), nil, &Account{}, []string{"PATH=/bin"}},
		"of the config": {root, []string{"HOME=/h", "USER=me"}, &Account{"web", "/srv/web"}, []string{"HOME=/h", "LOGNAME=web", "PATH=/bin", "USER=me"}},
	} {
		c := Config{Env: x.env, ExtraEnv: x.extra, Account: x.account}
		got := workerEnv(&c, newTemplate(c.template(), 1), 0, nil, -1, "")
		got = slices.DeleteFunc(got, func(kv string) bool { return kv[:4] == "RRD_" })
		slices.Sort(got)
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}
