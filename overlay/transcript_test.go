package overlay

import (
	"context"
	"log/slog"
	"slices"
	"sync"
)

// transcript is a log handler that keeps the operations.
type transcript struct {
	mu  sync.Mutex
	ops []string
}

func (t *transcript) logger() *slog.Logger { return slog.New(t) }

func (t *transcript) Enabled(context.Context, slog.Level) bool { return true }
func (t *transcript) WithAttrs([]slog.Attr) slog.Handler       { return t }
func (t *transcript) WithGroup(string) slog.Handler            { return t }

func (t *transcript) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "op" {
			t.mu.Lock()
			t.ops = append(t.ops, a.Value.String())
			t.mu.Unlock()
		}
		return true
	})
	return nil
}

// take returns the operations since the last call.
func (t *transcript) take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	ops := slices.Clone(t.ops)
	t.ops = nil
	return ops
}
