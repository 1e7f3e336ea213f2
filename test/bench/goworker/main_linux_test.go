package main

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func TestAnswers(t *testing.T) {
	for path, want := range map[string]string{
		"/": "ok 7", "/slow?ms=1": "ok 7", "/bytes?n=0": "", "/bytes?n=300000": strings.Repeat("\x00", 300000),
	} {
		w := httptest.NewRecorder()
		handler(7).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || w.Body.String() != want || w.Header().Get("Content-Length") != strconv.Itoa(len(want)) {
			t.Errorf("%s: %d, %d bytes", path, w.Code, w.Body.Len())
		}
	}
}

func TestRefusesNumbers(t *testing.T) {
	for _, path := range []string{"/slow", "/slow?ms=-1", "/bytes?n=x", "/bytes?n=99999999999"} {
		w := httptest.NewRecorder()
		handler(7).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 400 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestWantsAnAddress(t *testing.T) {
	if err := run(nil, nil); err == nil || !strings.Contains(err.Error(), "ADDRESS") {
		t.Error(err)
	}
}
