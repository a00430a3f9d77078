package node

import (
	"strings"
	"testing"
	"time"
)

func TestLongDead(t *testing.T) {
	now := time.Unix(1_760_000_000, 0)
	for _, c := range []struct {
		is    string
		since int64
		want  string
	}{
		{"dead", now.Add(-26 * time.Hour).Unix(), "for 26 h: its routes and addresses stay"},
		{"dead", now.Add(-23 * time.Hour).Unix(), ""},
		{"dead", 0, ""},
		{"suspect", now.Add(-26 * time.Hour).Unix(), ""},
		{"alive", now.Add(-26 * time.Hour).Unix(), ""},
	} {
		got, fix := longDead("node3", c.is, c.since, now)
		if got != c.want || (got != "") != strings.Contains(fix, "`nodectl node forget node3`") {
			t.Errorf("%s since %d: %q, %q; want %q", c.is, c.since, got, fix, c.want)
		}
	}
}
