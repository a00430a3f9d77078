package expr

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// function is one that expressions may call.
type function struct {
	args   []kind
	result kind
	of     func(q *plugin.Query, args []any) any
}

func functions() map[string]function {
	about := func(k kind, of func(q *plugin.Query) any) function {
		return function{result: k, of: func(q *plugin.Query, _ []any) any { return of(q) }}
	}
	// IPv6 addresses are in brackets.
	ip := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		if a = a.Unmap(); a.Is6() {
			return "[" + a.String() + "]"
		}
		return a.String()
	}
	return map[string]function{
		"name":   about(text, func(q *plugin.Query) any { return q.Name }),
		"type":   about(text, func(q *plugin.Query) any { return wire.Type(q.Type).String() }),
		"class":  about(text, func(q *plugin.Query) any { return wire.Class(q.Class).String() }),
		"id":     about(number, func(q *plugin.Query) any { return int(q.Msg.Id) }),
		"opcode": about(number, func(q *plugin.Query) any { return q.Msg.Opcode }),
		"size":   about(number, func(q *plugin.Query) any { return q.Msg.Len() }),
		"do":     about(boolean, func(q *plugin.Query) any { return q.DO }),
		"bufsize": about(number, func(q *plugin.Query) any {
			if o := q.OPT(); o != nil {
				return int(o.UDPSize())
			}
			return 512
		}),
		"client_ip": about(text, func(q *plugin.Query) any { return ip(q.Client.Addr()) }),
		"port":      about(text, func(q *plugin.Query) any { return strconv.Itoa(int(q.Client.Port())) }),
		"proto": about(text, func(q *plugin.Query) any {
			switch {
			case q.Proto != "":
				return q.Proto
			case q.TCP:
				return "tcp"
			}
			return "udp"
		}),
		"server_ip":   about(text, func(q *plugin.Query) any { return ip(q.Local.Addr()) }),
		"server_port": about(text, func(q *plugin.Query) any { return strconv.Itoa(int(q.Local.Port())) }),
		"incidr": {args: []kind{text, text}, result: boolean, of: func(_ *plugin.Query, args []any) any {
			a, err := netip.ParseAddr(strings.Trim(args[0].(string), "[]"))
			p, perr := netip.ParsePrefix(args[1].(string))
			return err == nil && perr == nil && p.Contains(a.Unmap().WithZone(""))
		}},
	}
}

func call(name string, args []node) (node, error) {
	f, ok := functions()[name]
	if !ok {
		return node{}, fmt.Errorf("function %s is not known", name)
	}
	if len(args) != len(f.args) {
		return node{}, fmt.Errorf("%s takes %d arguments", name, len(f.args))
	}
	for i, a := range args {
		if a.kind != f.args[i] {
			return node{}, fmt.Errorf("%s: argument %d is %s, not %s", name, i+1, a.kind, f.args[i])
		}
	}
	if name == "incidr" && args[1].fixed {
		if _, err := netip.ParsePrefix(args[1].value(nil).(string)); err != nil {
			return node{}, fmt.Errorf("incidr: %q is not a prefix", args[1].value(nil))
		}
	}
	return node{kind: f.result, value: func(q *plugin.Query) any {
		vals := make([]any, len(args))
		for i, a := range args {
			vals[i] = a.value(q)
		}
		return f.of(q, vals)
	}}, nil
}
