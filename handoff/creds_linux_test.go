package handoff

import (
	"os"
	"testing"

	"rrd/handoff/internal/unixmsg"
)

func TestSenderIsNotedUntilIgnored(t *testing.T) {
	c, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer child.Close()
	if err := c.WatchSender(); err != nil {
		t.Fatal(err)
	}
	f := Frame{Type: Ready}
	if _, err := child.Write(f.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	if c.Sender() != os.Getpid() {
		t.Errorf("Sender() = %d, want %d", c.Sender(), os.Getpid())
	}
	if more, err := c.Next(&f); !more || err != nil || f.Type != Ready {
		t.Errorf("Next() = %v, %v, %v", f.Type, more, err)
	}
	if err := c.IgnoreSender(); err != nil {
		t.Fatal(err)
	}
	c.sender = unixmsg.Sender{}
	if _, err := child.Write(f.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	if c.Sender() != 0 {
		t.Errorf("Sender() = %d after IgnoreSender", c.Sender())
	}
}
