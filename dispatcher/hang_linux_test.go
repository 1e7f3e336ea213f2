package dispatcher

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Binds that hang are left behind, a few for each slot, and others are not affected. What
// they still make is closed.
func TestBindsThatHang(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	synctest.Test(t, func(t *testing.T) {
		var g bindGates
		goC := make(chan struct{})
		hang := func() (*socket, error) {
			<-goC
			return bindSocket("unix", path, bindOptions{uid: -1, gid: -1})
		}
		none := errors.New("none")
		quick := func() (*socket, error) { return nil, none }
		for range bindsAtOnce {
			if _, err := g.bindInTime(0, time.Second, hang); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("%v", err)
			}
		}
		began := time.Now()
		if _, err := g.bindInTime(0, time.Second, quick); !errors.Is(err, syscall.ETIMEDOUT) || time.Since(began) != time.Second {
			t.Errorf("one more of that slot: %v", err)
		}
		if _, err := g.bindInTime(1, time.Second, quick); !errors.Is(err, none) {
			t.Errorf("another slot: %v", err)
		}
		close(goC)
		synctest.Wait()
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("a late bind has left its file: %v", err)
		}
		if _, err := g.bindInTime(0, time.Second, quick); !errors.Is(err, none) {
			t.Errorf("the slot stays blocked: %v", err)
		}
	})
}

func TestInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goC := make(chan struct{})
		began := time.Now()
		if inTime(unlinkLimit, func() { <-goC }) || time.Since(began) != unlinkLimit {
			t.Errorf("%v", time.Since(began))
		}
		close(goC)
		if !inTime(unlinkLimit, func() {}) {
			t.Error("it has returned")
		}
	})
}
