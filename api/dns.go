package api

import (
	"context"
	"net/netip"
)

// DNSTrace is the way of a question through the node's DNS server.
type DNSTrace struct {
	Name   string     `json:"name"`
	Type   string     `json:"type"`
	From   netip.Addr `json:"from,omitzero"` // zero: nobody in particular
	Server string     `json:"server"`
	// Tries are the names that a resolver asks for in turn, up to the one
	// that has an answer.
	Tries []DNSTry `json:"tries"`
}

// DNSTry is one name that was asked for.
type DNSTry struct {
	Name   string    `json:"name"`
	Search string    `json:"search,omitempty"` // the search domain that was put behind; empty: none
	Rcode  string    `json:"rcode"`
	Answer []string  `json:"answer"`
	Micros int64     `json:"micros"`
	Steps  []DNSStep `json:"steps"`
}

// DNSStep is one directive that saw the question, or something it did.
type DNSStep struct {
	Block    string `json:"block"`           // server block, by its first key
	Plugin   string `json:"plugin"`          // directive
	Depth    int    `json:"depth,omitempty"` // 0: the client's question, else one asked on its behalf
	Name     string `json:"name"`
	Type     string `json:"type"`
	Decision string `json:"decision"` // answered, passed on, error, dropped; or what the directive did
	Rcode    string `json:"rcode,omitempty"`
	// Origin is where the answer comes from: a zone and its revision, a file
	// and line, a zone file and its serial.
	Origin   string      `json:"origin,omitempty"`
	Records  []DNSSource `json:"records,omitempty"`
	Upstream string      `json:"upstream,omitempty"`
	// AgeMillis and TTLMillis are of a cached answer; the TTL that is left is
	// negative when it is stale.
	AgeMillis int64  `json:"ageMillis,omitempty"`
	TTLMillis int64  `json:"ttlMillis,omitempty"`
	Error     string `json:"error,omitempty"`
	// Micros is how long it took, with everything that it asked in turn.
	Micros int64 `json:"micros"`
}

// DNSSource is a record of the cluster that an answer comes from.
type DNSSource struct {
	Kind    string `json:"kind"` // service, endpoint, lease, node, name; zone: the zone itself
	Key     string `json:"key"`
	Node    string `json:"node,omitempty"`    // that declared it
	Version string `json:"version,omitempty"` // as `nodectl` shows versions elsewhere; opaque
	Written int64  `json:"written,omitempty"` // Unix seconds, by the writer's clock
}

// DNSWait waits until a name is answered.
type DNSWait struct {
	DNSQuery
	TimeoutMillis int64 `json:"timeoutMillis,omitempty"` // 0: 30 s
}

// DNSTopRequest asks what the DNS server is doing.
type DNSTopRequest struct {
	// Millis is how long to look, up to a minute. 0: one second.
	Millis int64 `json:"millis,omitempty"`
	// Rows is how many names and clients are wanted at most. 0: 10.
	Rows int `json:"rows,omitempty"`
}

// DNSTop is what the DNS server did while it was looked at.
type DNSTop struct {
	Millis  int64      `json:"millis"` // how long it was looked at
	Queries uint64     `json:"queries"`
	QPS     float64    `json:"qps"`
	Rcodes  []DNSCount `json:"rcodes"`  // the most frequent first
	Sources []DNSCount `json:"sources"` // directives that answered
	// Latency of the questions that went through the directives; those that
	// were answered in the receive loop take microseconds and are not measured.
	Latency DNSLatency `json:"latency"`
	// CacheHitPercent is of the questions that the cache saw; -1: none.
	CacheHitPercent float64 `json:"cacheHitPercent"`
	// Sampled is how many questions Names and Clients were counted from: each
	// Every-th, evenly. Counts are estimates for all questions.
	Sampled uint64     `json:"sampled"`
	Every   int        `json:"every"`
	Names   []DNSCount `json:"names"`
	Clients []DNSCount `json:"clients"`
}

// DNSCount is how often something was seen.
type DNSCount struct {
	What  string `json:"what"`
	Count uint64 `json:"count"`
	// Error is by how much Count may be too high.
	Error uint64 `json:"error,omitempty"`
}

// DNSLatency says in how many microseconds that part of the questions was
// answered. A value is the upper end of a bucket that grows by a quarter.
type DNSLatency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// DNSTrace follows a question through the node's DNS server.
func (c *Client) DNSTrace(ctx context.Context, q DNSQuery) (DNSTrace, error) {
	return post[DNSTrace](ctx, c, PathDNSTrace, q)
}

// DNSWait returns the answer to a question as soon as there is one. Without
// one in time the error has CodeNotReady.
func (c *Client) DNSWait(ctx context.Context, q DNSWait) (DNSAnswer, error) {
	return post[DNSAnswer](ctx, c, PathDNSWait, q)
}

// DNSTop looks at what the DNS server does.
func (c *Client) DNSTop(ctx context.Context, q DNSTopRequest) (DNSTop, error) {
	return post[DNSTop](ctx, c, PathDNSTop, q)
}
