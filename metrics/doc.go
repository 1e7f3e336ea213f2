// Package metrics exposes what the other parts of rrd count. It counts nothing
// on the path of a connection and knows no other package of rrd: whoever owns
// the counts hands over a Snapshot of plain values, and an Exporter turns one
// Snapshot into all families of one scrape.
//
// # One copy
//
// Every scrape asks its Source for exactly one Snapshot, made between two turns
// of the dispatcher's loop, and emits every family from it. So the law
//
//	accepted + rescued = acked + dropped + queued + in flight
//
// holds for each listener in every scrape, and not only on average.
//
// # Labels
//
// Workers are labelled by slot and listeners by name, so neither a respawn nor
// a port chosen by the kernel makes a new series. The only series that come and
// go are those of rrd_worker_info, which joins a slot to its pid and
// generation.
//
// Reasons that are known beforehand are exposed as zero from the start, because
// increase() and rate() miss a series' first sample. The exceptions are the
// failures and protocol errors of single workers, which would be ten series a
// worker for things that should never happen: those appear when they happen.
//
// # Histograms
//
// Histograms are classic ones. A native histogram cannot be made from counts
// that somebody else kept in fixed buckets without pretending to a resolution
// that the counts do not have.
package metrics
