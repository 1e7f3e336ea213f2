package pool

import (
	"regexp"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Workers are told to drain one after the other, and the drain timeout ends for all at
// once.
func TestDrainSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3, DrainTimeout: 20 * time.Second, DrainSpread: 9 * time.Second}).run()
		w.do(func() {
			for i := range 3 {
				w.Spoke(w.id(i))
				w.Ready(w.id(i))
			}
		})
		first := w.id(0)
		w.pass(time.Second)
		w.Stop()
		w.pass(time.Second)
		w.do(func() { w.Drained(first) })
		w.Stop() // it is stopping: their turns stay
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantSpread([]string{"1s", "4s", "7s"}, "21s")
	})
}

// A kill does not wait for turns, nor does a longer spread outlast the drain timeout.
func TestDrainSpreadIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 4, DrainTimeout: 4 * time.Second, DrainSpread: time.Hour}).run()
		w.do(func() {
			for i := range 4 {
				w.Spoke(w.id(i))
				w.Ready(w.id(i))
			}
		})
		w.Stop()
		w.pass(1500 * time.Millisecond)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantSpread([]string{"0s", "1s", "1.5s", "1.5s"}, "")
	})
}

// What is not ready has nothing that could come back.
func TestDrainSpreadOfWhatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3, DrainTimeout: NoTimeout, DrainSpread: 8 * time.Second}).run()
		w.do(func() {
			for i := range 2 {
				w.Spoke(w.id(i))
				w.Ready(w.id(i))
			}
		})
		w.Stop()
		w.pass(2 * time.Second)
		w.do(func() { w.Drained(w.id(0)) })
		w.pass(3 * time.Second)
		w.do(func() { w.Drained(w.id(1)) })
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantSpread([]string{"0s", "0s", "4s"}, "")
	})
}

// wantSpread compares when workers were told to drain, and when the last one that had
// not drained got its signal.
func (w *world) wantSpread(drains []string, cut string) {
	w.t.Helper()
	text := w.text()
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^(\S+) slot \d+ drain$`).FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	if !slices.Equal(got, drains) {
		w.t.Errorf("told to drain at %v, want %v:\n%s", got, drains, text)
	}
	terms := regexp.MustCompile(`(?m)^(\S+) pid \d+ gets terminated$`).FindAllStringSubmatch(text, -1)
	if cut != "" && (len(terms) == 0 || terms[len(terms)-1][1] != cut) {
		w.t.Errorf("the last one was cut at %v, want %s:\n%s", terms, cut, text)
	}
}
