package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// buildAll compiles everything into dir: rrd as make does, the worker in Go, the
// rest with gcc. It returns where rrd's sources are.
func buildAll(ctx context.Context, dir string) (root string, err error) {
	root, err = output(ctx, nil, "go", "list", "-m", "-f", "{{.Dir}}", "rrd")
	if err != nil {
		return "", fmt.Errorf("find rrd, which is in its own module only: %w", err)
	}
	root = strings.TrimSpace(root)
	build := []string{"go", "build", "-C", root, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", dir + "/", "rrd/cmd/rrd", "rrd/test/bench/goworker"}
	if _, err := output(ctx, []string{"CGO_ENABLED=0"}, build...); err != nil {
		return "", fmt.Errorf("build rrd: %w", err)
	}
	for _, name := range []string{"minworker", "refmaster", "client"} {
		if err := buildC(ctx, testdataIn(root), dir, name); err != nil {
			return "", err
		}
	}
	return root, nil
}

func buildC(ctx context.Context, testdata, dir, name string) error {
	if _, err := output(ctx, nil, "gcc", "-O2", "-o", filepath.Join(dir, name), filepath.Join(testdata, name+".c")); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}

// testdataIn is where the programs are that Go does not compile.
func testdataIn(root string) string { return filepath.Join(root, "test", "bench", "testdata") }
