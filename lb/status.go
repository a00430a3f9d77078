package lb

import (
	"errors"
	"fmt"
	"time"
)

// Status is the load balancer in one line, for `nodectl status`.
type Status struct {
	Desired, Applied uint64 // revisions
	OK               bool
	Detail           string
	Error, Fix       string
	Warnings         []string
}

// note records the outcome and logs when it turns from good to bad or back.
func (b *LB) note(rev uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.status
	b.status.OK = err == nil
	if err == nil {
		b.status.Applied = rev
		b.status.Error, b.status.Fix = "", ""
		b.status.Warnings = b.warnings
		if was.Error != "" {
			b.log.Info("nftables programmed again", "rev", rev)
		}
		return
	}
	b.status.Error, b.status.Fix = err.Error(), fixFor(err)
	if was.Error != b.status.Error {
		b.log.Error("nftables not programmed", "rev", rev, "err", err)
	}
}

func fixFor(err error) string {
	switch {
	case errors.Is(err, errNoPermission):
		return "run as root or with CAP_NET_ADMIN in this network namespace"
	case errors.Is(err, errNotSupported):
		return "load nf_tables, nft_nat, nft_masq, nft_fib_inet, nft_numgen, nft_hash and nft_reject_inet (kernel 5.9 or newer)"
	}
	return "see the log; the same change is retried every 10 seconds"
}

// Status reports the newest outcome. Its zero revision means that nothing
// was applied yet.
func (b *LB) Status() Status {
	lo := b.loop.problems()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Warnings = append(append([]string(nil), s.Warnings...), lo...)
	s.Detail = fmt.Sprintf("%s, %s", count(b.sizes[0], "service"), count(b.sizes[1], "backend"))
	if !b.changed.IsZero() {
		s.Detail += ", applied " + ago(time.Since(b.changed)) + " ago"
	}
	if len(s.Warnings) > 0 {
		s.Detail += "; " + s.Warnings[0]
		if n := len(s.Warnings) - 1; n > 0 {
			s.Detail += fmt.Sprintf(" (and %d more)", n)
		}
	}
	blame(&s, b.drops)
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ago rounds a duration to what a person reads at a glance.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return d.Truncate(time.Second).String()
}
