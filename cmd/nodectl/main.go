// Nodectl is nodenet: the daemon (`nodectl run`), the commands that talk to
// it, the CNI plugin (by its environment or its file name) and the lab.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// The main goroutine keeps the process's first thread. Work in a network
// namespace is done on threads that end afterwards, but the first one cannot
// end: it would stay in that namespace and keep it alive.
func init() { runtime.LockOSThread() }

func main() {
	if code, ok := runCNI(os.Args); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, engine: newEngine()}
	code := c.execute(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
