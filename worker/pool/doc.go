// Package pool keeps the worker processes of one master: it spawns them, sees
// them become ready, respawns what dies, drains and stops. It never sees a
// connection; what happens is told through Hooks, and what others learn about a
// worker (it spoke, it is ready, it has drained) is told to the pool by the
// worker's ID.
//
// # One owner
//
// Run is one goroutine that owns every slot and every process record. Methods put
// a request in its inbox; those that return something wait for the answer, the
// others never wait. Deadlines are plain times in the records, judged in Run after
// the inbox was read, so that a ready worker is never killed for a timeout whose
// cure already lay in the inbox.
//
// Every start has one goroutine from before the fork until after the reaping
// (live); waiting parks in the poller on a pidfd, so it costs no thread. Hooks are
// called in order by one further goroutine: a slow hook delays later hooks, never
// a respawn or a kill.
//
// # States of a slot
//
//	           spawn                 ready
//	(planned) ──────▶ starting ───────────────▶ ready
//	    ▲                │  start timeout: KILL   │ Stop, Shrink, Retire
//	    │ delay          │ exit, drain            ▼
//	    │                │                    draining
//	 backoff ◀───────────┴──────── exit ──────────┘
//
// down is a slot whose worker ended and whose restart policy leaves it so.
//
// A process that was killed and is still there after 2 s is stuck, whatever it was
// before. Its place goes to a successor at once, and it becomes one of the older
// processes of its slot, called SLOT.GENERATION, until it ends. There are at most two of
// them; a third that gets stuck keeps its place and makes the slot stuck.
//
// A native worker (one that speaks on its channel) that drains gets a Drain hook,
// TERM once it has drained, and KILL if that does not end it. Others
// (listen-fds) get the stop signal at once. Whether one that is still starting has a
// connection the pool does not know: it waits for Ready or Drained.
//
// # Rolls
//
// Roll replaces all workers by those of another Template, Restart one by another of
// its kind, both successor first: the slot's next process is started beside the one
// that works there, and takes its place when it is ready. A roll keeps the old
// ones until it has succeeded, then they drain, as older processes of their slots. A
// successor that fails stops the roll, and the kept ones take their places back. What was
// not kept is started again in the same way (roll.go has the states, kept.go the rest).
//
// # Upgrades
//
// Freeze brings the pool to a stand, State writes down what it knows, and Restore makes
// another of it in a new image of the same process, which adopts the children. What a
// frozen pool is told is kept as data and crosses too (freeze.go, state.go, adopt.go).
//
// # Processes
//
// Each worker leads its own process group. TERM and the like go to the leader, for a
// program with children of its own knows best what they should hear; KILL goes to
// the whole group. When a leader ends, its group is killed before the
// leader is reaped: no member outlives it, and the group's number cannot have become
// somebody else's. A command like "sh -c 'server'" is therefore better written "sh
// -c 'exec server'": the shell would end first and take the server with it.
//
// A descendant that leaves the group (setsid) escapes; only a cgroup could hold it. If it
// is the one that speaks on the channel, the pool learns of it from SetReader and watches
// it by a handle of its own. When the leader ends first, the reader is an orphan, an
// older process of its slot, and Exited is told when both are dead: until then somebody
// might still serve what the worker was given. When the reader ends first, the leader is
// a shell without its server, and follows.
package pool
