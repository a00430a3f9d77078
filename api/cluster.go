package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// Paths of what concerns the whole cluster. GET unless a comment says otherwise.
const (
	PathRing      = "/v1/ipam"         // []Ring
	PathExplain   = "/v1/ipam/explain" // ?addr=ADDRESS: Explanation
	PathForget    = "/v1/node/forget"  // POST ForgetRequest → Forgotten
	PathPeers     = "/v1/peers"        // []PeerDetail
	PathConflicts = "/v1/conflicts"    // []Conflict
	PathWait      = "/v1/wait"         // ?revision=R&converged=true&timeout=30s: a stream of Progress, one a line
	PathSnapshot  = "/v1/snapshot"     // POST SnapshotRequest → Snapshot
)

// Ring is an address range and who owns its parts.
type Ring struct {
	Name    string       `json:"name"` // a network's name, "services" or "nodeports"
	Prefix  netip.Prefix `json:"prefix"`
	Ports   string       `json:"ports,omitempty"` // of the node ports: "30000-32767"
	Block   int          `json:"block,omitempty"` // prefix length of the unit that changes hands; 0: single addresses
	Missing bool         `json:"missing,omitempty"`
	Parts   []RingPart   `json:"parts"`             // in address order
	Foreign []string     `json:"foreign,omitempty"` // IDs of rings with this name that belong to another cluster
}

// RingPart is a run of addresses with one owner.
type RingPart struct {
	From       netip.Addr     `json:"from"`
	To         netip.Addr     `json:"to"`
	Text       string         `json:"text"` // the run as people write it: a prefix, a range, ports
	Owner      string         `json:"owner"`
	OwnerID    string         `json:"ownerId"`
	State      string         `json:"state"` // of the owner; "forgotten", "left", "unknown" too
	Generation uint64         `json:"generation"`
	Units      uint64         `json:"units"` // blocks, or single addresses
	Share      float64        `json:"share"` // of the ring, 0 to 1
	Blocks     []netip.Prefix `json:"blocks,omitempty"`
	Used       uint64         `json:"used"`
	Total      uint64         `json:"total"` // addresses in what is open
	Quarantine int64          `json:"quarantine,omitempty"`
	Contested  []string       `json:"contested,omitempty"`
}

// Explanation says who has an address and why.
type Explanation struct {
	Addr      netip.Addr   `json:"addr"`
	Summary   string       `json:"summary"`
	Network   string       `json:"network,omitempty"` // or "services"; empty: not of this cluster
	Local     bool         `json:"local,omitempty"`   // the network is each node's own
	Part      *RingPart    `json:"part,omitempty"`
	Range     netip.Prefix `json:"range,omitzero"` // the record that says so
	Donor     string       `json:"donor,omitempty"`
	TakenFrom string       `json:"takenFrom,omitempty"`
	Since     int64        `json:"since,omitempty"` // Unix seconds
	Version   string       `json:"version,omitempty"`
	Block     *BlockInfo   `json:"block,omitempty"`
	Holders   []Holder     `json:"holders,omitempty"`
	Free      string       `json:"free,omitempty"` // why nobody holds it
	Route     string       `json:"route,omitempty"`
	Conflicts []string     `json:"conflicts,omitempty"`
}

// BlockInfo is an opened block.
type BlockInfo struct {
	Prefix  netip.Prefix `json:"prefix"`
	Node    string       `json:"node,omitempty"`
	Since   int64        `json:"since,omitempty"` // Unix seconds
	Version string       `json:"version,omitempty"`
}

// Holder is what has an address.
type Holder struct {
	What    string `json:"what"` // endpoint, lease, VIP, reservation, gateway, resolver
	Name    string `json:"name"`
	Node    string `json:"node,omitempty"`
	State   string `json:"state,omitempty"` // of the node
	Since   int64  `json:"since,omitempty"` // Unix seconds
	Version string `json:"version,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// ForgetRequest asks to take over the space of a node that is gone for good.
type ForgetRequest struct {
	Node  string `json:"node"`            // name or ID
	Force bool   `json:"force,omitempty"` // without the consent of a majority
	// QuarantineSeconds is how long its space rests; 0: ten minutes, or the
	// lease time of a network that it served with DHCP, if that is longer.
	QuarantineSeconds int64 `json:"quarantineSeconds,omitempty"`
}

// Forgotten is a node that was forgotten.
type Forgotten struct {
	Node       string   `json:"node"`
	ID         string   `json:"id"`
	Agreed     []string `json:"agreed"` // nodes that consented, this one first
	Known      int      `json:"known"`
	Forced     bool     `json:"forced,omitempty"`
	Ranges     []string `json:"ranges"` // taken over: "pods 10.244.128.0/17"
	Quarantine int64    `json:"quarantine,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
}

// PeerDetail is another node as replication sees it.
type PeerDetail struct {
	Name      string     `json:"name"`
	ID        string     `json:"id"`
	State     string     `json:"state"` // alive, suspect, dead, unknown, left, forgotten
	Since     int64      `json:"since,omitempty"`
	Address   netip.Addr `json:"address,omitzero"`
	Connected bool       `json:"connected"`
	RTTMicro  int64      `json:"rttMicro,omitempty"`
	LastSync  int64      `json:"lastSyncMillis"` // milliseconds ago; -1: never
	Lag       int        `json:"lag"`            // records of ours that it lacks; -1: not known
	BytesIn   uint64     `json:"bytesIn"`
	BytesOut  uint64     `json:"bytesOut"`
	Version   string     `json:"version,omitempty"`
	LastError string     `json:"lastError,omitempty"`
	SkewMicro int64      `json:"skewMicro,omitempty"`      // how far its clock is ahead, microseconds; behind if negative; 0: not known
	Flapping  int64      `json:"flappingMillis,omitempty"` // how much longer services prefer other nodes, milliseconds
}

// Conflict is something that records disagree on.
type Conflict struct {
	What   string `json:"what"`
	Winner string `json:"winner"`
	Loser  string `json:"loser"`
	Detail string `json:"detail"`
	// WinnerValue and LoserValue are the values, as JSON, where they are known.
	WinnerValue json.RawMessage `json:"winnerValue,omitempty"`
	LoserValue  json.RawMessage `json:"loserValue,omitempty"`
}

// Progress is how far the cluster has come.
type Progress struct {
	Done     bool     `json:"done"`
	Revision uint64   `json:"revision"`          // of this node, that the others are to hold
	Applied  uint64   `json:"applied,omitempty"` // by this node's kernel; with a wanted revision
	Nodes    int      `json:"nodes"`             // alive, this one included
	Holding  int      `json:"holding"`
	Waiting  []string `json:"waiting,omitempty"` // for these, with what they lack
	Dead     []string `json:"dead,omitempty"`    // not waited for
	Error    string   `json:"error,omitempty"`
}

// SnapshotRequest asks for the state as one file.
type SnapshotRequest struct {
	Secret bool `json:"secret,omitempty"` // with the cluster's secret and the node's key
}

// Snapshot is the state as one file.
type Snapshot struct {
	Data     []byte `json:"data"`
	Revision uint64 `json:"revision"`
	Records  int    `json:"records"`
}

// Rings returns the address ranges with their owners.
func (c *Client) Rings(ctx context.Context) ([]Ring, error) { return get[[]Ring](ctx, c, PathRing) }

// Explain says who has an address and why.
func (c *Client) Explain(ctx context.Context, addr netip.Addr) (Explanation, error) {
	return get[Explanation](ctx, c, PathExplain+"?addr="+url.QueryEscape(addr.String()))
}

// Forget takes over the space of a node that is gone for good.
func (c *Client) Forget(ctx context.Context, r ForgetRequest) (Forgotten, error) {
	return post[Forgotten](ctx, c, PathForget, r)
}

// Peers returns the other nodes as replication sees them.
func (c *Client) Peers(ctx context.Context) ([]PeerDetail, error) {
	return get[[]PeerDetail](ctx, c, PathPeers)
}

// Conflicts returns all that records disagree on.
func (c *Client) Conflicts(ctx context.Context) ([]Conflict, error) {
	return get[[]Conflict](ctx, c, PathConflicts)
}

// Snapshot returns the state as one file.
func (c *Client) Snapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	return post[Snapshot](ctx, c, PathSnapshot, r)
}

// Wait waits until every node that is alive holds what this one holds now
// (with converged), and until this one's kernel holds revision, and calls
// progress, which may be nil, with what it hears meanwhile. The error says
// for whom the time was too short.
func (c *Client) Wait(ctx context.Context, converged bool, revision uint64, timeout time.Duration, progress func(Progress)) error {
	q := url.Values{"converged": {strconv.FormatBool(converged)}, "revision": {strconv.FormatUint(revision, 10)}, "timeout": {timeout.String()}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nodenet"+PathWait+"?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("make request %s: %w", PathWait, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" && ctx.Err() == nil {
			return unreachable(c.socket, op.Err)
		}
		return fmt.Errorf("wait: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return answerError(resp, resp.Body, http.MethodGet, PathWait)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var p Progress
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return errors.New("wait: the daemon stopped")
		} else if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if progress != nil {
			progress(p)
		}
		switch {
		case p.Error != "":
			return &Error{Message: p.Error, Code: CodeNotReady}
		case p.Done:
			return nil
		}
	}
}
