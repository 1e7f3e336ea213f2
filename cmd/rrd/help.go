//go:build unix

package main

// helpText is --help: every flag, by what one wants to do, on one screen. A test
// compares it with the flags and their defaults.
const helpText = `rrd starts N workers and gives each new connection to the one free the longest.

Usage: rrd [flags] -- COMMAND [ARG...]   serve with workers that run COMMAND
       rrd [flags]                       serve with the built-in HTTP worker
       rrd compare                       measure the policies on this machine

Connections                                              (default)
  -l, --listen [NAME=]ADDR[,opt=v]   repeatable; :80, 127.0.0.1:80, [::1]:80,
                           unix:/path, fd:N, fd:NAME, udp://:53; opt is as,
                           backlog, or for unix: mode, owner, group
  -p, --policy P           rr, none, reuseport, auto     (auto)
      --queue-limit N, --queue-timeout D   what may wait; how long (4096, off)
      --handoff-window N   answers a worker may owe      (4)
      --busy-after D       no more for one so late       (50ms)
      --hang-timeout D, --hang-signal S    kill one so late; how (30s, KILL)
      --rescue-limit N, --tls-ticket-rotate D   copies; new key (1024, 24h)
      --worker-max-connections-active N   0: any number  (0)
Workers
  -w, --workers N          1 to 1024, or one per CPU     (auto)
      --worker-protocol P  rrd, node, listen-fds, auto   (auto)
      --ready-on-message   Node: when "ready" is sent, too (off)
      --start-timeout D, --ready-after D   spawn to ready; unsaid (30s, 1s)
      --unhealthy-after D  replace one unwell so long    (10s)
      --drain-timeout D, --stop-timeout D  to finish, TERM to KILL (30s, 5s)
      --lame-duck D, --drain-spread D   serve on first; in turn (off, off)
      --stop-signal S      for listen-fds workers        (TERM)
      --restart R          always, on-failure, never     (always)
      --respawn-min D, --respawn-max D   backoff         (1s, 30s)
      --surge N, --canary-time D, --roll-keep N   pace of a reload (1, 5s, all)
      --max-connections-per-worker N       replace one that took so many (off)
      --max-age D, --max-rss SIZE          is so old, so big     (off, off)
      --user U, --group G, --worker-nofile N   who they are; open files
      --chdir DIR, --env K=V, --env-file F     where; repeatable; lines of K=V
      --worker-output O    raw, prefix, json, auto       (auto)
      --hook-before-start C, --hook-before-spawn C   run C first; for each
      --hook-worker-ready C, --hook-worker-exit C, --hook-timeout D   (30s)
Watching
      --metrics ADDR       HTTP, also unix:/path, or off (127.0.0.1:9746)
      --ready-min N, --ready-max-wait D    /-/ready: workers, queue (1, 5s)
      --control PATH, --control-uid U      rrdctl's socket, more users (auto)
      --log-level L, --log-format F   debug to error; console, json (info, auto)
This program
      --config FILE        TOML; keys as the flags, and command = [...]
      --check, --version, --help (-h)   check: try all but serving; exit 0 or 2

D is like 500ms, 5s or 1m30s; timeouts also accept off. {slot} and {generation}
are replaced in COMMAND and in values of --env. A flag beats RRD_<FLAG>, which
beats FILE. Exit codes: 0 stopped as asked, 1 runtime failure, 2 usage, 3 no
worker became ready.
`
