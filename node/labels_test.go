package node

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

func TestLabelsDeclareAService(t *testing.T) {
	for name, c := range map[string]struct {
		labels map[string]string
		want   string // "": nothing is declared; "!": an error with the rest in it
	}{
		"none":         {map[string]string{"app": "web"}, ""},
		"weight alone": {map[string]string{"nodenet.io/weight": "256"}, ""},
		"one port":     {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80:http"}, "web.apps 80:http/tcp"},
		"several":      {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80:8080, 53/udp 6000-6010:7000/udp"}, "web.apps 80:8080/tcp 53/udp 6000-6010:7000/udp"},
		"check": {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-check": "http /up"},
			"web.apps 80/tcp check http /up"},
		"IPv6 alone":          {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-families": "ipv6"}, "web.apps families ipv6 80/tcp"},
		"both families":       {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-families": "ipv6,ipv4"}, "web.apps families ipv4 ipv6 80/tcp"},
		"bad family":          {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-families": "ipx"}, "!ipx: unknown value"},
		"families of nothing": {map[string]string{"nodenet.io/service-families": "ipv6"}, "!without nodenet.io/service=NAME"},
		"no port":             {map[string]string{"nodenet.io/service": "web"}, "!add the label nodenet.io/service-port"},
		"no service":          {map[string]string{"nodenet.io/service-port": "80"}, "!without nodenet.io/service=NAME"},
		"bad port":            {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "http"}, "!http: not a port"},
		"bad name":            {map[string]string{"nodenet.io/service": "Web_1", "nodenet.io/service-port": "80"}, "!Web_1.apps: not NAME.NAMESPACE"},
		"bad weight":          {map[string]string{"nodenet.io/weight": "0"}, "!want a number from 1 to 256"},
		"bad check":           {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-check": "ping"}, "!ping: unknown value"},
		"check of no tcp":     {map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "53/udp", "nodenet.io/service-check": "tcp"}, "!no tcp port to check"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := labelService("apps", c.labels)
			if text, bad := strings.CutPrefix(c.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("error %v, want one with %q", err, text)
				}
				return
			}
			got := ""
			if s != nil {
				cfg := config.Config{Service: []config.Service{*s}}
				text := cfg.String()
				for line := range strings.Lines(text[strings.Index(text, "service web"):]) {
					word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
					switch word {
					case "service":
						got = strings.TrimSuffix(rest, " {")
					case "families":
						got += " families " + rest
					case "port":
						got += " " + rest
					case "check":
						got += " check " + strings.TrimSuffix(rest, " {")
					case "path":
						got += " " + rest
					}
				}
			}
			if err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestLabelledServiceComesAndGoes(t *testing.T) {
	n := newTestNode(t)
	endpoint := func(id string, created int64, labels map[string]string) state.Op {
		return state.Put(state.Owner, state.KindEndpoint, id, state.Endpoint{
			ID: id, Network: "pods", Namespace: "apps", Name: id, Labels: labels, Ready: true, Created: created,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(created)})},
		})
	}
	labels := func(port string) map[string]string {
		return map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": port, "nodenet.io/weight": port[:1]}
	}
	step := func(what string, want ...string) {
		t.Helper()
		if err := n.declareLabels(t.Context()); err != nil {
			t.Fatal(err)
		}
		rev := n.store.Snapshot().Rev()
		if err := n.declareLabels(t.Context()); err != nil || n.store.Snapshot().Rev() != rev {
			t.Errorf("%s: done again it is not the same: %v", what, err)
		}
		var got []string
		for _, s := range n.services(n.store.Snapshot()) {
			text := s.Name + " " + s.Source
			for _, p := range s.Ports {
				text += " " + strconv.Itoa(int(p.Port))
			}
			for _, b := range s.Backends {
				text += " " + b.Name + "*" + strconv.Itoa(b.Weight)
			}
			got = append(got, text)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	n.put(t, endpoint("a", 2, labels("80")), endpoint("b", 3, labels("80")))
	step("two of one", "web label 80 a*8 b*8")
	n.put(t, endpoint("c", 1, labels("90")))
	step("an older one says something else", "web label 90 c*9 a*8 b*8")
	if _, err := n.addService(t.Context(), api.ServiceSpec{Name: "web", Namespace: "apps", Ports: []api.ServicePort{{Port: 80}}}); code(err) != api.CodeReadOnly {
		t.Errorf("a command against labels: %v", err)
	}
	n.put(t, state.Del(state.Owner, state.KindEndpoint, "c"), state.Del(state.Owner, state.KindEndpoint, "a"))
	step("one left", "web label 80 b*8")
	cfg := *n.cfg
	cfg.Service = []config.Service{{Namespace: "apps", Name: "web", Ports: []config.ServicePort{{Port: 70, Protocol: "tcp"}}}}
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	step("the Nodefile has it", "web nodefile 70")
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	step("and no longer has it", "web label 80 b*8")
	n.put(t, state.Del(state.Owner, state.KindEndpoint, "b"))
	step("none left")
}
