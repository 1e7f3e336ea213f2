package dispatcher

import (
	"encoding/json"
	"testing"
)

// FuzzRestoreTable: what another process, or a broken one, has written is refused or
// makes a sound table.
func FuzzRestoreTable(f *testing.F) {
	t := newTable(2, 0)
	l := t.addListener()
	for range 3 {
		w := t.addWorker()
		t.serve(w, l)
		t.unblock(w)
	}
	for range 9 {
		t.arrive(l)
	}
	for range 5 {
		t.pair(l)
	}
	t.keep(t.workers[0].flying.head)
	seed, err := json.Marshal(t.save())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"Window":1,"Workers":[{"ID":0,"Window":1,"Flying":[0]}],"Listeners":[{"ID":0,"Serves":[0,0],"Free":[0]}],"Conns":[{"ID":0,"State":2,"Listener":0,"Worker":0}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s savedTable
		if json.Unmarshal(text, &s) != nil {
			return
		}
		for i := range s.Conns {
			s.Conns[i].ID %= 1 << 10 // a legal one of 16 million is no finding
		}
		restored, err := restoreTable(&s, 0)
		if err != nil {
			return
		}
		if err := integrity(restored); err != nil {
			t.Fatal(err)
		}
	})
}
