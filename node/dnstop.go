package node

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"nodenet/api"
	"nodenet/dns"
)

// Bounds of what a caller may ask of dnsTop.
const (
	maxTopTime = time.Minute
	maxTopRows = 100
)

// dnsTop looks for a while at what the DNS server does.
func (n *Node) dnsTop(ctx context.Context, q api.DNSTopRequest) (*api.DNSTop, error) {
	d := time.Duration(cmp.Or(q.Millis, 1000)) * time.Millisecond
	if d <= 0 || d > maxTopTime {
		return nil, invalid("dns top: %s: want more than 0 and up to %s", d, maxTopTime)
	}
	rows := cmp.Or(q.Rows, 10)
	if rows < 1 || rows > maxTopRows {
		return nil, invalid("dns top: %d rows: want 1 to %d", rows, maxTopRows)
	}
	t, err := n.dns.Watch(ctx, d, rows)
	if err != nil {
		return nil, fmt.Errorf("dns top: %w", err)
	}
	micros := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	out := &api.DNSTop{
		Millis: t.Took.Milliseconds(), Queries: t.Queries, QPS: float64(t.Queries) / t.Took.Seconds(),
		Rcodes: counts(t.Rcodes), Sources: counts(t.Sources), CacheHitPercent: -1,
		Latency: api.DNSLatency{Count: t.Latency.Count, P50: micros(t.Latency.P50), P90: micros(t.Latency.P90), P99: micros(t.Latency.P99), Max: micros(t.Latency.Max)},
		Sampled: t.Sampled, Every: t.Every, Names: counts(t.Names), Clients: counts(t.Clients),
	}
	if all := t.Hits + t.Misses; all > 0 {
		out.CacheHitPercent = 100 * float64(t.Hits) / float64(all)
	}
	return out, nil
}

func counts(items []dns.TopItem) []api.DNSCount {
	out := []api.DNSCount{}
	for _, it := range items {
		out = append(out, api.DNSCount{What: it.What, Count: it.Count, Error: it.Error})
	}
	return out
}
