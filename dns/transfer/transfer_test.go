package transfer

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

// source is a plugin with one zone.
type source struct {
	mu  sync.Mutex
	rrs []wire.RR
}

func (*source) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	return next(ctx, q)
}

func (s *source) Transfer(zone string) ([]wire.RR, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rrs, zone == "example."
}

const (
	soa = "example. 60 IN SOA ns.example. h.example. 7 1 2 3 4\n"
	a   = "a.example. 60 IN A 192.0.2.1\n"
)

func attached(t *testing.T, text string, src *source) *transfer {
	t.Helper()
	ps, s := plugintest.Setup(t, "example", text, map[string]plugintest.ParseFunc{"transfer": Parse})
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	p := ps[0].Plugin.(*transfer)
	p.Attach(plugin.Env{Plugins: append(ps, plugin.Named{Name: "file", Plugin: src})}.Filled())
	return p
}

func TestServe(t *testing.T) {
	src := &source{rrs: plugintest.RRs(t, soa+a)}
	tests := []struct {
		name, text, question, client string
		tcp                          bool
		serial                       uint32
		want                         string
	}{
		{"whole zone", "transfer {\n to *\n}", "example AXFR", "192.0.2.1", true, 0, "NOERROR aa\n" + a + soa + soa},
		{"this server", "transfer {\n to 192.0.2.1\n}", "example AXFR", "192.0.2.1", true, 0, "NOERROR aa\n" + a + soa + soa},
		{"another server", "transfer {\n to 192.0.2.1\n}", "example AXFR", "192.0.2.2", true, 0, "REFUSED\n"},
		{"a network", "transfer {\n to 192.0.2.0/24\n}", "example AXFR", "192.0.2.2", true, 0, "NOERROR aa\n" + a + soa + soa},
		{"over UDP", "transfer {\n to *\n}", "example AXFR", "192.0.2.1", false, 0, "REFUSED\n"},
		{"nothing new", "transfer {\n to *\n}", "example IXFR", "192.0.2.1", true, 7, "NOERROR aa\n" + soa},
		{"incremental is whole", "transfer {\n to *\n}", "example IXFR", "192.0.2.1", true, 6, "NOERROR aa\n" + a + soa + soa},
		{"incremental over UDP", "transfer {\n to *\n}", "example IXFR", "192.0.2.1", false, 6, "NOERROR aa\n" + soa},
		{"not the apex", "transfer {\n to *\n}", "a.example AXFR", "192.0.2.1", true, 0, "none\n"},
		{"no such zone", "transfer example.org {\n to *\n}", "example.org AXFR", "192.0.2.1", true, 0, "NOTAUTH\n"},
		{"another type", "transfer {\n to *\n}", "example SOA", "192.0.2.1", true, 0, "none\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := plugintest.Query(t, tt.question)
			q.TCP, q.Client = tt.tcp, netip.AddrPortFrom(netip.MustParseAddr(tt.client), 5)
			if tt.serial > 0 {
				q.Msg.Ns = []wire.RR{&wire.SOA{Serial: tt.serial}}
			}
			if diff := cmp.Diff(tt.want, plugintest.Serve(t, attached(t, tt.text, src), q, nil)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNotify: the server in `to` hears of the zone, and of a new serial only.
func TestNotify(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 10)
	srv := &wire.Server{PacketConn: pc, Handler: wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
		heard <- wire.OpcodeToString[m.Opcode] + " " + m.Question[0].Name
		_ = w.WriteMsg(new(wire.Msg).SetReply(m))
	})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown(); <-done })

	src := &source{rrs: plugintest.RRs(t, soa)}
	p := attached(t, "transfer {\n to "+pc.LocalAddr().String()+"\n source 127.0.0.1\n}", src)
	p.look(t.Context())
	p.look(t.Context())
	src.mu.Lock()
	src.rrs = plugintest.RRs(t, strings.Replace(soa, " 7 ", " 8 ", 1))
	src.mu.Unlock()
	p.look(t.Context())
	for i := range 2 {
		select {
		case got := <-heard:
			if got != "NOTIFY example." {
				t.Errorf("heard %q", got)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("heard %d times", i)
		}
	}
	if len(heard) > 0 {
		t.Errorf("told of nothing new: %s", <-heard)
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "transfer\ntransfer {\n to here\n source there\n via x\n}", map[string]plugintest.ParseFunc{"transfer": Parse})
	want := []string{
		"Nodefile:2: .: transfer: nobody may copy the zones, write `transfer { to ADDRESS }`",
		`Nodefile:4: .: to: "here" is not an address or a prefix, write it like 192.0.2.0/24`,
		`Nodefile:5: .: transfer: source "there" is not an address`,
		`Nodefile:6: .: transfer: unknown option "via", known are to, source`,
		"Nodefile:3: .: transfer: nobody may copy the zones, write `transfer { to ADDRESS }`",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
