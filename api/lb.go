package api

import (
	"context"
	"net/netip"
	"net/url"
	"strconv"
)

// Paths of what the load balancer has in the kernel. Both list all elements.
const (
	PathLBDump  = "/v1/lb/dump"  // LBDump
	PathLBTrace = "/v1/lb/trace" // ?from=ADDRESS&to=ADDRESS:PORT&protocol=tcp&slot=N: LBTrace
)

// LBDump is the node's rules as the kernel has them.
type LBDump struct {
	Ruleset string `json:"ruleset"` // in nft's syntax
}

// LBTrace says what becomes of the first packet of a flow.
type LBTrace struct {
	From       netip.Addr     `json:"from"`
	To         netip.AddrPort `json:"to"`
	Protocol   string         `json:"protocol"`
	Device     string         `json:"device,omitempty"` // that it arrives by; empty: the node sends it
	Chains     []string       `json:"chains"`           // passed, in order
	Lookups    []string       `json:"lookups"`          // "chain: set { key : value }"
	Action     string         `json:"action"`           // accept, drop, reset, unreachable
	Target     netip.AddrPort `json:"target"`           // where it goes in the end
	Translated bool           `json:"translated"`
	Masquerade bool           `json:"masquerade"`
	Notrack    bool           `json:"notrack"`
}

// LBDump returns the node's rules as the kernel has them.
func (c *Client) LBDump(ctx context.Context) (LBDump, error) { return get[LBDump](ctx, c, PathLBDump) }

// LBTrace follows a packet through the rules and elements that the kernel
// has. slot is the number that is drawn among the backends.
func (c *Client) LBTrace(ctx context.Context, from netip.Addr, to netip.AddrPort, protocol string, slot uint32) (LBTrace, error) {
	q := url.Values{"from": {from.String()}, "to": {to.String()}, "protocol": {protocol}, "slot": {strconv.FormatUint(uint64(slot), 10)}}
	return get[LBTrace](ctx, c, PathLBTrace+"?"+q.Encode())
}
