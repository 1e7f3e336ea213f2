package handoff

import (
	"encoding/json"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

func TestZeroFDOwnsNothing(t *testing.T) {
	var d FD
	if d.Valid() || d.Num() != -1 {
		t.Errorf("valid %v, number %d", d.Valid(), d.Num())
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if d = Own(-1); d.Valid() || d.Close() != nil {
		t.Error("the number of a failed call is owned")
	}
}

// A second Close must not hit the file that got the number in between.
func TestFDClosesOnce(t *testing.T) {
	leakcheck.Check(t)
	first, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := Own(first)
	if !d.Valid() || d.Num() != first {
		t.Fatalf("valid %v, number %d, want %d", d.Valid(), d.Num(), first)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// The lowest free number is given out, so this is the same one again.
	second, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, first)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(second)
	if second != first {
		t.Fatalf("number %d was not used again, got %d", first, second)
	}
	if err := d.Close(); err != nil || d.Valid() {
		t.Errorf("second Close: %v, valid %v", err, d.Valid())
	}
	if _, err := unix.FcntlInt(uintptr(second), unix.F_GETFD, 0); err != nil {
		t.Errorf("the second Close closed a stranger's descriptor: %v", err)
	}
}

func TestReleaseThenClose(t *testing.T) {
	leakcheck.Check(t)
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := Own(fd)
	if got := d.Release(); got != fd || d.Valid() {
		t.Errorf("released %d, want %d; valid %v", got, fd, d.Valid())
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Errorf("Close after Release closed it: %v", err)
	}
}

func TestCloseOfAClosedNumberIsReported(t *testing.T) {
	d := Own(1 << 20)
	wantErrno(t, "close", d.Close(), unix.EBADF)
	if d.Valid() {
		t.Error("still valid")
	}
}

// A state names descriptors by number; decoding makes their owner and touches nothing.
func TestFDAsJSON(t *testing.T) {
	for _, want := range []FD{{}, Own(0), Own(7), Own(1 << 20)} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got FD
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("%s: %v, %v", b, got, err)
		}
	}
	for _, bad := range []string{"-2", "2147483647", "99999999999", `"7"`, "1.5", "{}", "[]"} {
		var got FD
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s was taken for %d", bad, got.Num())
		}
	}
}
