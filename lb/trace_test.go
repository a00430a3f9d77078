package lb

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTrace(t *testing.T) {
	rs := Derive(testView(), testLocal()).Ruleset()
	const client, w1, w2, w9 = "192.0.2.1", "10.244.0.2", "10.244.0.3", "10.244.1.9"
	const client6, w1v6, w2v6 = "2001:db8::1", "fd00:10:244::2", "fd00:10:244::3"
	tests := map[string]struct {
		in, src, dst string // dst is "addr:port/proto", "addr/echo" or "addr/error"; "/fragment" is one of UDP without ports
		sport        uint16
		rand         uint32
		want, path   string
	}{
		"first slot":                   {"nn-t0", w2, "10.96.0.20:80/tcp", 40000, 0, "accept to 10.244.0.2:8080", "raw_pre pre dispatch vip lb-2 guard_pre guard forward internals permit post translated"},
		"second slot is itself":        {"nn-t0", w2, "10.96.0.20:80/tcp", 40000, 7, "accept to 10.244.0.3:8080 masquerade", ""},
		"outside, backend here":        {"eth0", client, "10.96.0.23:80/tcp", 40000, 0, "accept to 10.244.0.2:8080", ""},
		"outside, backend elsewhere":   {"eth0", client, "10.96.0.23:80/tcp", 40000, 1, "accept to 10.244.1.2:8080 masquerade", ""},
		"workload, backend elsewhere":  {"nn-t0", w1, "10.96.0.24:80/tcp", 40000, 0, "accept to 10.244.1.2:8080", ""},
		"local network, elsewhere":     {"nn-t1", "172.30.0.5", "10.96.0.24:80/tcp", 40000, 0, "accept to 10.244.1.2:8080 masquerade", ""},
		"node, backend elsewhere":      {"", "192.0.2.11", "10.96.0.24:80/tcp", 40000, 0, "accept to 10.244.1.2:8080", "raw_out out dispatch vip lb-1 guard_out guard post translated"},
		"no backends":                  {"eth0", client, "10.96.0.22:80/tcp", 40000, 0, "reset", "raw_pre pre dispatch vip guard_pre guard undelivered"},
		"no backends, node":            {"", "192.0.2.11", "10.96.0.22:80/tcp", 40000, 0, "reset", ""},
		"unknown port":                 {"nn-t0", w1, "10.96.0.20:81/udp", 40000, 0, "unreachable", ""},
		"unallocated":                  {"nn-t0", w1, "10.96.9.9:80/tcp", 40000, 0, "drop", ""},
		"unallocated echo":             {"eth0", client, "10.96.9.9/echo", 0, 0, "drop", ""},
		"echo":                         {"eth0", client, "10.96.0.22/echo", 0, 0, "accept to 10.96.0.10:0", ""},
		"echo of the resolver":         {"nn-t0", w1, "10.96.0.10/echo", 0, 0, "accept", ""},
		"question":                     {"nn-t0", w1, "10.96.0.10:53/udp", 40000, 0, "accept notrack", "raw_pre pre dispatch guard_pre guard resolver"},
		"question by TCP":              {"nn-t0", w1, "10.96.0.10:53/tcp", 40000, 0, "accept notrack", ""},
		"answer to the node itself":    {"", "10.96.0.10", "10.96.0.10:40000/udp", 53, 0, "accept notrack", ""},
		"node port on the resolver":    {"nn-t0", w1, "10.96.0.10:30080/tcp", 40000, 0, "reset", ""},
		"published port on resolver":   {"nn-t0", w1, "10.96.0.10:8080/tcp", 40000, 0, "reset", ""},
		"node port":                    {"eth0", client, "192.0.2.11:30080/tcp", 40000, 1, "accept to 10.244.0.3:8080", "raw_pre pre dispatch host np-2 guard_pre guard forward internals permit post translated"},
		"node port, elsewhere":         {"eth0", client, "192.0.2.11:30090/tcp", 40000, 1, "accept to 10.244.1.2:8080 masquerade", ""},
		"node port, other protocol":    {"eth0", client, "192.0.2.11:30080/udp", 40000, 0, "accept", ""},
		"node port, pod of a peer":     {"nn-vx1", w9, "192.0.2.11:30090/tcp", 40000, 1, "accept to 10.244.1.2:8080 masquerade", ""},
		"node port on loopback":        {"", "127.0.0.1", "127.0.0.1:30080/tcp", 40000, 0, "accept", ""},
		"published":                    {"eth0", client, "192.0.2.11:8080/tcp", 40000, 0, "accept to 10.244.0.2:8080", ""},
		"published, sibling":           {"nn-t0", w2, "192.0.2.11:8080/tcp", 40000, 0, "accept to 10.244.0.2:8080", ""},
		"published, itself":            {"nn-t0", w1, "192.0.2.11:8080/tcp", 40000, 0, "accept to 10.244.0.2:8080 masquerade", ""},
		"published on a named address": {"eth0", client, "192.0.2.11:8443/tcp", 40000, 0, "accept to 10.244.0.3:8080", ""},
		"published on another address": {"nn-t0", w1, "10.244.0.1:8443/tcp", 40000, 0, "accept", ""},
		"published on loopback":        {"eth0", client, "192.0.2.11:9000/tcp", 40000, 0, "accept", ""},
		"transit":                      {"nn-t0", w1, "192.0.2.1:8080/tcp", 40000, 0, "accept masquerade", ""},
		"transit from outside":         {"eth0", client, "198.51.100.1:8080/tcp", 40000, 0, "accept", ""},
		"pod to pod":                   {"nn-t0", w1, "10.244.1.9:80/tcp", 40000, 0, "accept", ""},
		"pod to a local network's pod": {"nn-t0", w1, "172.30.0.5:80/tcp", 40000, 0, "accept", ""},
		"local network to outside":     {"nn-t1", "172.30.0.5", "198.51.100.1:80/tcp", 40000, 0, "accept masquerade", ""},
		"internal to outside":          {"nn-t2", "172.31.0.5", "198.51.100.1:80/tcp", 40000, 0, "drop", ""},
		"outside to internal":          {"eth0", client, "172.31.0.5:80/tcp", 40000, 0, "drop", ""},
		"pod to internal":              {"nn-t0", w1, "172.31.0.5:80/tcp", 40000, 0, "drop", ""},
		"internal to its own":          {"nn-t2", "172.31.0.5", "172.31.0.6:80/tcp", 40000, 0, "accept", ""},
		"internal to the node":         {"nn-t2", "172.31.0.5", "192.0.2.11:22/tcp", 40000, 0, "accept", ""},
		"spoofed from internal":        {"nn-t2", "10.244.0.9", "10.244.0.2:80/tcp", 40000, 0, "drop", ""},
		"reply of a backend is lifted": {"nn-t0", w1, "10.244.0.3:40000/tcp", 8080, 0, "accept lift 02:00:00:00:00:01", ""},
		"other traffic is switched":    {"nn-t0", w1, "10.244.0.3:40000/tcp", 9999, 0, "accept", ""},
		"a backend's error is lifted":  {"nn-t0", w1, "10.244.0.3/error", 0, 0, "accept lift 02:00:00:00:00:01", ""},
		"another's error is switched":  {"nn-t0", "10.244.0.9", "10.244.0.3/error", 0, 0, "accept", ""},
		"a backend's echo is switched": {"nn-t0", w1, "10.244.0.3/echo", 0, 0, "accept", ""},
		"fragments are lifted":         {"nn-t0", w1, "10.244.0.3/fragment", 0, 0, "accept lift 02:00:00:00:00:01", ""},
		"another's are switched":       {"nn-t0", "10.244.0.9", "10.244.0.3/fragment", 0, 0, "accept", ""},

		"v6: first slot":                   {"nn-t0", w2v6, "[fd00:10:96::14]:80/tcp", 40000, 0, "accept to [fd00:10:244::2]:8080", "raw_pre raw6 pre dispatch dispatch6 vip6 lb-2 guard_pre guard guard6 forward internals permit post translated translated6"},
		"v6: second slot is itself":        {"nn-t0", w2v6, "[fd00:10:96::14]:80/tcp", 40000, 7, "accept to [fd00:10:244::3]:8080 masquerade", ""},
		"v6: outside, backend here":        {"eth0", client6, "[fd00:10:96::17]:80/tcp", 40000, 0, "accept to [fd00:10:244::2]:8080", ""},
		"v6: outside, backend elsewhere":   {"eth0", client6, "[fd00:10:96::17]:80/tcp", 40000, 1, "accept to [fd00:10:244::102]:8080 masquerade", ""},
		"v6: workload, backend elsewhere":  {"nn-t0", w1v6, "[fd00:10:96::18]:80/tcp", 40000, 0, "accept to [fd00:10:244::102]:8080", ""},
		"v6: node, backend elsewhere":      {"", "2001:db8::11", "[fd00:10:96::18]:80/tcp", 40000, 0, "accept to [fd00:10:244::102]:8080", ""},
		"v6: no backends":                  {"eth0", client6, "[fd00:10:96::16]:80/tcp", 40000, 0, "reset", "raw_pre raw6 pre dispatch dispatch6 vip6 guard_pre guard guard6 undelivered6"},
		"v6: unknown port":                 {"nn-t0", w1v6, "[fd00:10:96::14]:81/udp", 40000, 0, "unreachable", ""},
		"v6: unallocated":                  {"nn-t0", w1v6, "[fd00:10:96::909]:80/tcp", 40000, 0, "drop", ""},
		"v6: unallocated echo":             {"eth0", client6, "fd00:10:96::909/echo", 0, 0, "drop", ""},
		"v6: echo":                         {"eth0", client6, "fd00:10:96::16/echo", 0, 0, "accept to [fd00:10:96::a]:0", ""},
		"v6: echo of the resolver":         {"nn-t0", w1v6, "fd00:10:96::a/echo", 0, 0, "accept", ""},
		"v6: question":                     {"nn-t0", w1v6, "[fd00:10:96::a]:53/udp", 40000, 0, "accept notrack", "raw_pre raw6 pre dispatch dispatch6 guard_pre guard guard6 resolver6"},
		"v6: node port on the resolver":    {"nn-t0", w1v6, "[fd00:10:96::a]:30080/tcp", 40000, 0, "reset", ""},
		"v6: node port":                    {"eth0", client6, "[2001:db8::11]:30080/tcp", 40000, 1, "accept to [fd00:10:244::3]:8080", ""},
		"v6: node port, elsewhere":         {"eth0", client6, "[2001:db8::11]:30090/tcp", 40000, 1, "accept to [fd00:10:244::102]:8080 masquerade", ""},
		"v6: node port on loopback":        {"", "::1", "[::1]:30080/tcp", 40000, 0, "accept", ""},
		"v6: node port on link-local":      {"eth0", "fe80::1", "[fe80::11]:30080/tcp", 40000, 0, "accept", ""},
		"v6: published":                    {"eth0", client6, "[2001:db8::11]:8080/tcp", 40000, 0, "accept to [fd00:10:244::2]:8080", ""},
		"v6: published, itself":            {"nn-t0", w1v6, "[2001:db8::11]:8080/tcp", 40000, 0, "accept to [fd00:10:244::2]:8080 masquerade", ""},
		"v6: published on a named address": {"eth0", client6, "[2001:db8::11]:8443/tcp", 40000, 0, "accept to [fd00:10:244::3]:8080", ""},
		"v6: published on link-local":      {"eth0", "fe80::1", "[fe80::11]:8080/tcp", 40000, 0, "accept", ""},
		"v6: published on loopback":        {"eth0", client6, "[2001:db8::11]:9000/tcp", 40000, 0, "accept", ""},
		"v6: transit":                      {"nn-t0", w1v6, "[2001:db8::1]:8080/tcp", 40000, 0, "accept masquerade", ""},
		"v6: pod to pod":                   {"nn-t0", w1v6, "[fd00:10:244::109]:80/tcp", 40000, 0, "accept", ""},
		"v6: internal to outside":          {"nn-t2", "fd00:172:31::5", "[2001:db8::1]:80/tcp", 40000, 0, "drop", ""},
		"v6: outside to internal":          {"eth0", client6, "[fd00:172:31::5]:80/tcp", 40000, 0, "drop", ""},
		"v6: internal to its own":          {"nn-t2", "fd00:172:31::5", "[fd00:172:31::6]:80/tcp", 40000, 0, "accept", ""},
		"v6: reply of a backend is lifted": {"nn-t0", w1v6, "[fd00:10:244::3]:40000/tcp", 8080, 0, "accept lift 02:00:00:00:00:01", ""},
		"v6: other traffic is switched":    {"nn-t0", w1v6, "[fd00:10:244::3]:40000/tcp", 9999, 0, "accept", ""},
		"v6: a backend's error is lifted":  {"nn-t0", w1v6, "fd00:10:244::3/error", 0, 0, "accept lift 02:00:00:00:00:01", ""},
		"v6: another's error is switched":  {"nn-t0", "fd00:10:244::9", "fd00:10:244::3/error", 0, 0, "accept", ""},
		"v6: fragments are lifted":         {"nn-t0", w1v6, "fd00:10:244::3/fragment", 0, 0, "accept lift 02:00:00:00:00:01", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Packet{In: tt.in, Src: addr(tt.src), Sport: tt.sport, Rand: tt.rand}
			dst, proto, _ := strings.Cut(tt.dst, "/")
			switch proto {
			case "echo", "error":
				p.Dst, p.Echo, p.Error = addr(dst), proto == "echo", proto == "error"
				p.Proto = icmp(versionOf(p.Dst))
			case "fragment":
				p.Dst, p.Proto, p.Fragment = addr(dst), UDP, true
			default:
				p.Dst, p.Dport, p.Proto = ap(dst).Addr(), ap(dst).Port(), protoNumber(proto)
			}
			got := Trace(rs, p)
			if got.String() != tt.want {
				t.Errorf("got %q, want %q\npath %v", got, tt.want, got.Path)
			}
			if path := strings.TrimPrefix(strings.Join(got.Path, " "), "lift "); tt.path != "" && path != tt.path {
				t.Errorf("path %q, want %q", path, tt.path)
			}
		})
	}
}

// TestTraceSlots: whatever the number of backends and the random number, a
// service delivers to one of its backends, and every backend is reached.
func TestTraceSlots(t *testing.T) {
	client := [...]netip.Addr{V4: addr("192.0.2.1"), V6: addr("2001:db8::1")}
	rapid.Check(t, func(t *rapid.T) {
		tab := genTable(t)
		rs := tab.Ruleset()
		for _, s := range tab.Services {
			hit := make(map[string]bool)
			for r := range uint32(len(s.Backends)) {
				v := Trace(rs, Packet{In: "eth0", Src: client[versionOf(s.VIP)], Dst: s.VIP, Proto: s.Proto, Dport: s.Port, Rand: r})
				if v.Action != "accept" || !v.DNAT {
					t.Fatalf("%s:%d with %d backends: %s by %v", s.VIP, s.Port, len(s.Backends), v, v.Path)
				}
				hit[v.Target.String()] = true
			}
			if len(hit) != len(s.Backends) {
				t.Fatalf("%s:%d: %d of %d backends reached", s.VIP, s.Port, len(hit), len(s.Backends))
			}
			if len(s.Backends) == 0 {
				if v := Trace(rs, Packet{In: "eth0", Src: client[versionOf(s.VIP)], Dst: s.VIP, Proto: s.Proto, Dport: s.Port}); v.Action != "reset" && v.Action != "unreachable" {
					t.Fatalf("%s:%d without backends: %s", s.VIP, s.Port, v)
				}
			}
		}
	})
}
