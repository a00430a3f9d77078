package node

import (
	"testing"
	"time"
)

func TestClusterClock(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name   string
		median time.Duration
		peers  int
		want   time.Duration
	}{
		{"alone", 0, 0, 0},
		{"ordinary drift", 3 * time.Second, 5, 0},
		{"ours is a day ahead of two", -day, 2, -day},
		{"ours is a day behind two", day, 2, day},
		{"the only peer is behind: it, or we are ahead", -day, 1, -day},
		{"the only peer is ahead: it, or we are behind", day, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := clusterClock{skews: func() (time.Duration, int) { return tc.median, tc.peers }, local: func() time.Time { return noon }}
			if got := c.now().Sub(noon); got != tc.want {
				t.Errorf("corrected by %s, want %s", got, tc.want)
			}
		})
	}
}

// The peers' clocks are looked at once a second, and again when ours is set.
func TestClusterClockLooksAgain(t *testing.T) {
	now, looks := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), 0
	c := clusterClock{skews: func() (time.Duration, int) { looks++; return 0, 2 }, local: func() time.Time { return now }}
	for _, step := range []struct {
		by   time.Duration
		want int
	}{{0, 1}, {time.Millisecond, 1}, {time.Second, 2}, {24 * time.Hour, 3}, {-24 * time.Hour, 4}} {
		now = now.Add(step.by)
		c.now()
		if looks != step.want {
			t.Errorf("%d looks after %s, want %d", looks, step.by, step.want)
		}
	}
}
