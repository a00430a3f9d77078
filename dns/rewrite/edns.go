package rewrite

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// ednsRule gives the question that goes to an upstream an EDNS option.
type ednsRule struct {
	code   uint16
	action string // set, append, replace, unset
	make   func(q *plugin.Query) wire.EDNS0
}

const ednsForm = "rewrite edns0 local|nsid|subnet set|append|replace|unset …"

func parseEDNS(s *plugin.Setup, l line) rule {
	w := l.words[1:]
	if len(w) > 0 && w[len(w)-1] == "revert" {
		s.Noticef(l.d, "rewrite: revert is ignored, options of upstreams never reach clients")
		w = w[:len(w)-1]
	}
	if len(w) < 2 || !slices.Contains([]string{"set", "append", "replace", "unset"}, w[1]) {
		s.Errorf(l.d.Pos, "rewrite: write `%s`", ednsForm)
		return nil
	}
	r := &ednsRule{action: w[1]}
	args := w[2:]
	switch w[0] {
	case "local":
		code, err := uint64(0), error(nil)
		if len(args) > 0 {
			code, err = strconv.ParseUint(args[0], 0, 16)
		}
		if err != nil || len(args) != 2 && !(r.action == "unset" && len(args) == 1) {
			s.Errorf(l.d.Pos, "rewrite: write `rewrite edns0 local set|append|replace CODE DATA` or `unset CODE`")
			return nil
		}
		r.code = uint16(code)
		if len(args) == 2 {
			if r.make = localData(s, l, r.code, args[1]); r.make == nil {
				return nil
			}
		}
	case "nsid":
		r.code = wire.EDNS0NSID
		r.make = func(*plugin.Query) wire.EDNS0 { return &wire.EDNS0_NSID{Code: wire.EDNS0NSID} }
	case "subnet":
		r.code = wire.EDNS0SUBNET
		if r.action == "unset" {
			break
		}
		var bits [2]int
		for i, most := range []int{32, 128} {
			n, err := -1, error(nil)
			if len(args) == 2 {
				n, err = strconv.Atoi(args[i])
			}
			if err != nil || n < 0 || n > most {
				s.Errorf(l.d.Pos, "rewrite: write `rewrite edns0 subnet set|append|replace BITS4 BITS6`, such as 24 56")
				return nil
			}
			bits[i] = n
		}
		r.make = func(q *plugin.Query) wire.EDNS0 { return subnet(q.Client.Addr().Unmap(), bits) }
	default:
		s.Errorf(l.d.Pos, "rewrite: edns0 %q is not known, write `%s`", w[0], ednsForm)
		return nil
	}
	return r
}

// localData makes an option of bytes, text, or a variable of the question.
func localData(s *plugin.Setup, l line, code uint16, text string) func(*plugin.Query) wire.EDNS0 {
	option := func(data []byte) wire.EDNS0 { return &wire.EDNS0_LOCAL{Code: code, Data: data} }
	if h, ok := strings.CutPrefix(text, "0x"); ok {
		data, err := hex.DecodeString(h)
		if err != nil {
			s.Errorf(l.d.Pos, "rewrite: %q is not hexadecimal", text)
			return nil
		}
		return func(*plugin.Query) wire.EDNS0 { return option(data) }
	}
	if !strings.HasPrefix(text, "{") {
		return func(*plugin.Query) wire.EDNS0 { return option([]byte(text)) }
	}
	port := func(n uint16) []byte { return []byte{byte(n >> 8), byte(n)} }
	of := map[string]func(*plugin.Query) []byte{
		"{qname}":       func(q *plugin.Query) []byte { return []byte(q.Name) },
		"{qtype}":       func(q *plugin.Query) []byte { return port(q.Type) },
		"{client_ip}":   func(q *plugin.Query) []byte { return q.Client.Addr().Unmap().AsSlice() },
		"{client_port}": func(q *plugin.Query) []byte { return port(q.Client.Port()) },
		"{server_ip}":   func(q *plugin.Query) []byte { return q.Local.Addr().Unmap().AsSlice() },
		"{server_port}": func(q *plugin.Query) []byte { return port(q.Local.Port()) },
		"{protocol}": func(q *plugin.Query) []byte {
			if q.TCP {
				return []byte("tcp")
			}
			return []byte("udp")
		},
	}[text]
	if of == nil {
		s.Errorf(l.d.Pos, "rewrite: variable %s is not known, there is no metadata here", text)
		return nil
	}
	return func(q *plugin.Query) wire.EDNS0 { return option(of(q)) }
}

// subnet is the client's network (RFC 7871).
func subnet(a netip.Addr, bits [2]int) wire.EDNS0 {
	e := &wire.EDNS0_SUBNET{Code: wire.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(bits[0])}
	if a.Is6() {
		e.Family, e.SourceNetmask = 2, uint8(bits[1])
	}
	if p, err := a.WithZone("").Prefix(int(e.SourceNetmask)); err == nil {
		e.Address = p.Addr().AsSlice()
	}
	return e
}

func (r *ednsRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	// What the client sent counts as there, as far as it can be passed on.
	i := slices.IndexFunc(q.Options, func(o wire.EDNS0) bool { return o.Option() == r.code })
	has := i >= 0
	if opt := q.OPT(); !has && opt != nil {
		has = slices.ContainsFunc(opt.Option, func(o wire.EDNS0) bool { return o.Option() == r.code })
	}
	if r.action == "replace" && !has || r.action == "append" && has || r.action == "unset" && i < 0 {
		return q, nil, false
	}
	out := q.With(q.Msg.Question[0].Name, q.Type, q.Class)
	out.Options = slices.Clone(q.Options)
	if i >= 0 {
		out.Options = slices.Delete(out.Options, i, i+1)
	}
	if r.action != "unset" {
		out.Options = append(out.Options, r.make(q))
	}
	return out, nil, true
}
