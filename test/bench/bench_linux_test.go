package main

import (
	"strings"
	"testing"

	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// TestItMeasures is one short round: it keeps the programs in C compiling and
// every connection answered. Its figures mean nothing.
func TestItMeasures(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"-rounds=1", "-seconds=0.1", "-at=2x1,2x4", "-queue=256"}, &out); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	rows := 0
	for line := range strings.Lines(out.String()) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 9 && strings.Contains(line, "(") {
			rows++
			if cells[8] != "0 |" {
				t.Errorf("connections failed: %s", line)
			}
		}
	}
	if rows != 6 || !strings.Contains(out.String(), "256 connections queued") {
		t.Errorf("%d rows of 6 in\n%s", rows, out.String())
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range []string{"-at=4", "-at=0x1", "-at=4x2000", "-rounds=0", "-seconds=0", "-clients=0", "-queue=-1", "word"} {
		if p, err := parse([]string{args}); err == nil || !strings.Contains(err.Error(), strings.SplitN(args, "=", 2)[0]) {
			t.Errorf("%s: %+v, %v", args, p, err)
		}
	}
}

func TestSpread(t *testing.T) {
	if s := spreadOf([]float64{3, 1, 2, 10}).text(1); s != "2.5 (1.0–10.0)" {
		t.Error(s)
	}
	if s := ratios([]float64{2, 9}, []float64{1, 3}).text(0); s != "2 (2–3)" {
		t.Error(s)
	}
}
