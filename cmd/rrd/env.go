//go:build unix

package main

import (
	"fmt"
	"slices"
	"strings"

	"rrd/handoff"
)

const envPrefix = "RRD_"

// envName is the environment's name of a setting.
func envName(setting string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

// workerNames are set by an rrd above this one, not for it.
var workerNames = []string{handoff.EnvChannelFD, handoff.EnvSlot, handoff.EnvGeneration, handoff.EnvProtocol}

// readEnvironment picks the settings out of environ. An empty variable counts
// as not set, since many tools can empty one but not remove it. Names that it
// does not know only warn: container images and Kubernetes (RRD_PORT,
// RRD_SERVICE_HOST for a service called rrd) set such names by themselves.
func readEnvironment(environ []string) (found map[string]setValue, warnings []string) {
	found = map[string]setValue{}
	known := map[string]*setting{}
	var names []string
	for i := range settings {
		if s := &settings[i]; !s.noEnv {
			known[envName(s.name)] = s
			names = append(names, envName(s.name))
		}
	}
	for _, kv := range environ {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || value == "" || !strings.HasPrefix(name, envPrefix) || slices.Contains(workerNames, name) {
			continue
		}
		s := known[name]
		switch {
		case s == nil && slices.Contains([]string{"RRD_CHECK", "RRD_VERSION", "RRD_HELP", "RRD_ENV"}, name):
			warnings = append(warnings, fmt.Sprintf("%s: ignored, because this is a flag only: use --%s", name, strings.ToLower(name[len(envPrefix):])))
		case s == nil:
			warnings = append(warnings, fmt.Sprintf("%s: ignored, because there is no such setting%s", oneWord(name), suggestion(name, names, "")))
		case s.list:
			if values := strings.Fields(value); len(values) > 0 {
				found[s.name] = setValue{values, name}
			}
		default:
			found[s.name] = setValue{one(value), name}
		}
	}
	return found, warnings
}
