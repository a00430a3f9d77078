package node

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// freePort is one that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestHealthPort(t *testing.T) {
	port, taken := freePort(t), freePort(t)
	service := func(name string, port uint16, backends ...state.BackendOf) *state.ServiceView {
		return &state.ServiceView{Service: state.Service{Namespace: "apps", Name: name, HealthPort: port}, Backends: backends}
	}
	on := func(node state.NodeID, ready bool) state.BackendOf { return state.BackendOf{Node: node, Ready: ready} }
	var v *state.View
	show := func(services ...*state.ServiceView) {
		v = state.NewView(state.View{Self: "n1"}, nil, services)
	}
	h := newHealthPorts(func() *state.View { return v }, slog.New(slog.DiscardHandler))
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	ask := func(port uint16) string {
		t.Helper()
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		if err != nil {
			return "refused"
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	show(service("web", port, on("n1", true), on("n1", true), on("n1", false), on("n2", true), on("", true)))
	h.set(wantedHealthPorts(v), loopback)
	want("two here", ask(port), `200 {"service":{"namespace":"apps","name":"web"},"localEndpoints":2}`)

	// The set of listeners is the same: what they say follows the view.
	show(service("web", port, on("n1", false), on("n2", true)))
	want("none here", ask(port), `503 {"service":{"namespace":"apps","name":"web"},"localEndpoints":0}`)

	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", taken))
	if err != nil {
		t.Fatal(err)
	}
	show(service("api", taken, on("n1", true)), service("web", port), service("www", port, on("n1", true)))
	h.set(wantedHealthPorts(v), loopback)
	faults := []string{
		fmt.Sprintf("health port %d of service apps/www: is that of service apps/web: choose another", port),
		fmt.Sprintf("health port %d of service apps/api: listen tcp 127.0.0.1:%d: bind: address already in use: choose another, or stop what has it", taken, taken),
	}
	if d := cmp.Diff(faults, h.Faults()); d != "" {
		t.Errorf("faults (-want +got):\n%s", d)
	}
	l.Close()
	show(service("api", taken, on("n1", true)), service("www", port, on("n1", true)))
	h.set(wantedHealthPorts(v), loopback)
	want("free again", ask(taken), `200 {"service":{"namespace":"apps","name":"api"},"localEndpoints":1}`)
	want("another service's now", ask(port), `200 {"service":{"namespace":"apps","name":"www"},"localEndpoints":1}`)
	if f := h.Faults(); len(f) > 0 {
		t.Errorf("faults stay: %v", f)
	}
	h.set(nil, nil)
	want("nobody wants it", ask(port), "refused")
}
