package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds on what clients of the server can cost the master. They are read-only
// and unauthenticated, and every connection is one of the master's descriptors.
const (
	maxInFlight   = 40 // as node_exporter; also the number of connections
	maxHeader     = 16 << 10
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 30 * time.Second
	closeTimeout  = time.Second
)

// StatusVersion is the version of the document at /status.json. Fields may be
// added under one version; it grows when one changes its meaning or goes.
const StatusVersion = 1

// ServerConfig is what a Server may be told; the zero value is a good one.
type ServerConfig struct {
	// ErrorLog takes what the HTTP server and the exporter complain about; nil
	// discards it.
	ErrorLog *log.Logger
}

// Server answers HTTP about one Exporter: /metrics, /-/healthy, /-/ready,
// /status.json and a landing page. It only ever reads.
type Server struct {
	exporter *Exporter
	cfg      ServerConfig
	started  time.Time
	handler  http.Handler
}

// NewServer returns a Server; it does not listen yet. Make one Server of an
// Exporter, since both share a registry.
func NewServer(e *Exporter, cfg ServerConfig) *Server {
	if cfg.ErrorLog == nil {
		cfg.ErrorLog = log.New(io.Discard, "", 0)
	}
	s := &Server{exporter: e, cfg: cfg, started: time.Now()}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(e.reg, promhttp.HandlerFor(e.Gatherer(), promhttp.HandlerOpts{
		ErrorLog:            cfg.ErrorLog,
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            e.reg,
		MaxRequestsInFlight: maxInFlight,
		CoalesceGather:      true,
		EnableOpenMetrics:   true,
		// Compressing costs the master more than loopback gains.
		DisableCompression: true,
	})))
	mux.HandleFunc("GET /-/healthy", s.healthy)
	mux.HandleFunc("GET /-/ready", s.ready)
	mux.HandleFunc("GET /status.json", s.status)
	mux.HandleFunc("GET /{$}", s.landing)
	s.handler = limitRequests(mux, maxInFlight)
	return s
}

// Handler returns the handler without the bounds on connections and time.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on ln until ctx is done, then finishes what is being answered,
// for at most a second, and returns nil. It closes ln. When it returns, no
// goroutine of it is left.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          s.cfg.ErrorLog,
	}
	doneC := make(chan error, 1)
	go s.serve(srv, newLimitListener(ln, maxInFlight), doneC) // waited for through doneC
	select {
	case err := <-doneC:
		srv.Close()
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	return <-doneC
}

func (s *Server) serve(srv *http.Server, ln net.Listener, doneC chan<- error) {
	err := srv.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	doneC <- err
}

// healthy is 200 while the dispatcher gives copies: a master whose loop hangs
// serves nobody and is to be restarted.
func (s *Server) healthy(w http.ResponseWriter, r *http.Request) {
	if _, err := s.exporter.snapshot(r.Context()); err != nil {
		text(w, http.StatusServiceUnavailable, "the dispatch loop does not answer: "+err.Error())
		return
	}
	text(w, http.StatusOK, "rrd is healthy")
}

// ready is 200 while new connections are wanted and served.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	snap, err := s.exporter.snapshot(r.Context())
	is := Ready(snap, err)
	switch {
	case err != nil:
		text(w, http.StatusServiceUnavailable, "not ready: "+is.Reason)
	case !is.OK:
		text(w, http.StatusServiceUnavailable, fmt.Sprintf("not ready: %s (%d of %d workers are ready)", is.Reason, is.Workers, snap.Desired))
	default:
		text(w, http.StatusOK, fmt.Sprintf("rrd is ready: %d of %d workers are ready", is.Workers, snap.Desired))
	}
}

// statusDocument is /status.json.
type statusDocument struct {
	Version int `json:"version"`
	RRD     struct {
		Version   string    `json:"version"`
		Revision  string    `json:"revision"`
		GoVersion string    `json:"go_version"`
		PID       int       `json:"pid"`
		Started   time.Time `json:"started"`
	} `json:"rrd"`
	Ready bool `json:"ready"`
	// Reason says why not ready.
	Reason string `json:"reason,omitempty"`
	// OldestWait is the age of the oldest waiting connection.
	OldestWait float64 `json:"oldest_wait_seconds"`
	// Stale says why this is an old copy or none.
	Stale string `json:"stale,omitempty"`
	// Law is the law of each listener, by its label.
	Law map[string]Law `json:"law"`
	*Snapshot
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	snap, err := s.exporter.snapshot(r.Context())
	doc := statusDocument{Version: StatusVersion, Law: map[string]Law{}, Snapshot: snap}
	b := s.exporter.cfg.Build
	doc.RRD.Version, doc.RRD.Revision, doc.RRD.GoVersion = b.Version, b.Revision, runtime.Version()
	doc.RRD.PID, doc.RRD.Started = os.Getpid(), s.started
	is := Ready(snap, err)
	doc.Ready, doc.Reason = is.OK, is.Reason
	code := http.StatusOK
	if snap != nil {
		doc.OldestWait = snap.OldestWait.Seconds()
		for i := range snap.Listeners {
			doc.Law[snap.Listeners[i].Name] = snap.Listeners[i].Law()
		}
	}
	if err != nil {
		code, doc.Stale = http.StatusServiceUnavailable, err.Error()
	}
	body, err := json.MarshalIndent(doc, "", "  ")
	if err != nil { // a NaN in a histogram's sum; nothing else can fail
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	header(w, "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}

const landingPage = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>rrd</title></head>
<body><h1>rrd</h1>
<ul>
<li><a href="/metrics">/metrics</a> for Prometheus</li>
<li><a href="/status.json">/status.json</a> for scripts</li>
<li><a href="/-/healthy">/-/healthy</a> is 200 while the dispatcher answers</li>
<li><a href="/-/ready">/-/ready</a> is 200 while new connections are served</li>
</ul></body></html>
`

func (s *Server) landing(w http.ResponseWriter, _ *http.Request) {
	header(w, "text/html; charset=utf-8")
	io.WriteString(w, landingPage)
}

func header(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}

// text writes one line. The error of a Source may hold any text, so line breaks
// in it are taken out.
func text(w http.ResponseWriter, code int, line string) {
	header(w, "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, strings.Map(oneLine, line)+"\n")
}

func oneLine(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

// limitRequests answers 503 beyond n requests at a time.
func limitRequests(h http.Handler, n int) http.Handler {
	slots := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			text(w, http.StatusServiceUnavailable, "too many requests at a time")
		}
	})
}
