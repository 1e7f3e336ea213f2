//go:build unix && !linux

package main

import "github.com/rs/zerolog"

// systemd is on Linux only.
func systemd(zerolog.Logger) *notifier { return nil }
