package worker

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// response is the http.ResponseWriter that handlers get on HTTP/1 connections. It has
// all methods of net/http's own, so type assertions find what they find there. It adds
// "Connection: close" when the head is about to be sent, which may be long after the
// handler was called.
type response struct {
	http.ResponseWriter
	g     *gentle
	begun bool // the head is fixed
}

// begin comes before everything that fixes the head. status is that of the answer.
func (w *response) begin(status int) {
	informs := status >= 100 && status < 200 && status != http.StatusSwitchingProtocols
	if w.begun || informs {
		return
	}
	w.begun = true
	if status != http.StatusSwitchingProtocols {
		w.g.sayClose(w.ResponseWriter)
	}
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *response) WriteString(s string) (int, error) {
	w.begin(http.StatusOK)
	return io.WriteString(w.ResponseWriter, s)
}

func (w *response) ReadFrom(r io.Reader) (int64, error) {
	w.begin(http.StatusOK)
	if to, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return to.ReadFrom(r) // sendfile
	}
	return io.Copy(w.ResponseWriter, r)
}

func (w *response) Flush() { _ = w.FlushError() }

func (w *response) FlushError() error {
	w.begin(http.StatusOK)
	return w.control().Flush()
}

// CloseNotify serves programs from before Request.Context.
func (w *response) CloseNotify() <-chan bool {
	if n, ok := w.ResponseWriter.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	return nil
}

func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.control().Hijack() }
func (w *response) SetReadDeadline(t time.Time) error            { return w.control().SetReadDeadline(t) }
func (w *response) SetWriteDeadline(t time.Time) error           { return w.control().SetWriteDeadline(t) }
func (w *response) EnableFullDuplex() error                      { return w.control().EnableFullDuplex() }

func (w *response) control() *http.ResponseController {
	return http.NewResponseController(w.ResponseWriter)
}
