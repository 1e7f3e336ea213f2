//go:build unix

package main

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"
	"strings"
)

// account is a user; gid is -1 if it is unknown. name and home are empty where the user
// database does not have them.
type account struct {
	uid, gid   int
	name, home string
}

// lookupAccount finds a user by name or number. A number needs no entry in the
// user database, as is usual in containers.
func lookupAccount(v string) (account, error) {
	u, err := user.Lookup(v)
	if err != nil {
		id, isNumber := parseID(v)
		if !isNumber {
			return account{}, errors.New("is no user of this system: name one, or give its number")
		}
		if u, err = user.LookupId(v); err != nil {
			return account{uid: id, gid: -1}, nil
		}
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, fmt.Errorf("has the odd number %q", u.Uid)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		gid = -1
	}
	return account{uid, gid, u.Username, u.HomeDir}, nil
}

// lookupGroup finds a group by name or number.
func lookupGroup(v string) (int, error) {
	if g, err := user.LookupGroup(v); err == nil {
		return strconv.Atoi(g.Gid)
	}
	id, ok := parseID(v)
	if !ok {
		return 0, errors.New("is no group of this system: name one, or give its number")
	}
	return id, nil
}

// parseID accepts a uid or gid. The highest is -1 in disguise, which system
// calls take for "leave it".
func parseID(v string) (int, bool) {
	n, err := strconv.ParseUint(v, 10, 32)
	return int(n), err == nil && n < math.MaxUint32 && int(n) >= 0
}

func applyUser(h *host, c *config, v string) error {
	a, err := h.account(v)
	if err != nil {
		return badValue(v, "%v", err)
	}
	c.user = &a
	return nil
}

func applyGroup(h *host, c *config, v string) error {
	gid, err := h.group(v)
	if err != nil {
		return badValue(v, "%v", err)
	}
	c.group = &gid
	return nil
}

func applyEnv(_ *host, c *config, values []string) error {
	for _, v := range values {
		if err := checkVariable(v); err != nil {
			return err
		}
	}
	c.env = values
	return nil
}

// checkVariable accepts NAME=VALUE. What is not a value may be a secret, so
// errors show the name only.
func checkVariable(v string) error {
	name, _, ok := strings.Cut(v, "=")
	switch {
	case !ok:
		return badValue(v, "has no =: write NAME=VALUE")
	case name == "":
		return badValue("=...", "has no name before its =: write NAME=VALUE")
	case strings.ContainsRune(v, 0):
		return badValue(name+"=...", "contains a NUL byte")
	case strings.HasPrefix(name, envPrefix):
		return badValue(name+"=...", "is rrd's own: no variable of a worker can start with %s", envPrefix)
	}
	return nil
}

// applyEnvFile reads lines of NAME=VALUE. Values are taken as they are: quotes
// and backslashes mean nothing, as in Docker's files. Empty lines and those that
// start with # are skipped.
func applyEnvFile(h *host, c *config, v string) error {
	data, err := h.readFile(v)
	if err != nil {
		return badValue(v, "cannot be read: %v", reason(err))
	}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if trimmed := strings.TrimSpace(line); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if err := checkVariable(line); err != nil {
			var bad *valueError
			errors.As(err, &bad)
			if !strings.Contains(line, "=") {
				bad.value = "..." // it may be the second line of a key
			}
			return badValue(v, "is wrong at line %d: %v", i+1, bad)
		}
		c.envFile = append(c.envFile, line)
	}
	return nil
}
