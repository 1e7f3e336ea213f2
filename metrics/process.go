package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// process emits rrd_worker_process_* of the process pid, as far as this system
// tells. A process that is gone by now has no such series in this scrape.
func (e emitter) process(slot string, pid int) {
	c := collectors.NewProcessCollector(collectors.ProcessCollectorOpts{
		Namespace: "rrd_worker",
		PidFn:     func() (int, error) { return pid, nil },
	})
	prometheus.WrapCollectorWith(prometheus.Labels{"worker": slot}, ownProcess{c}).Collect(e.ch)
}

// ownProcess leaves out of a process collector what is not the process's own:
// its network_* series are the totals of the whole network namespace, read from
// /proc/PID/net/netstat, and would add up to a multiple of the truth.
type ownProcess struct{ prometheus.Collector }

func (c ownProcess) Collect(ch chan<- prometheus.Metric) {
	inner := make(chan prometheus.Metric)
	go c.collectInto(inner) // ends with the loop below, which reads until the channel is closed
	for m := range inner {
		if !strings.Contains(m.Desc().String(), "process_network_") {
			ch <- m
		}
	}
}

func (c ownProcess) collectInto(ch chan<- prometheus.Metric) {
	defer close(ch)
	c.Collector.Collect(ch)
}
