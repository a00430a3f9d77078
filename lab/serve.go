package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// Serve runs a small web server until ctx ends. It answers every request with
// one line: its name, and the address that it was asked from.
func Serve(ctx context.Context, name string, l net.Listener) error {
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from := r.RemoteAddr
			if ap, err := netip.ParseAddrPort(from); err == nil {
				from = ap.Addr().Unmap().String()
			}
			fmt.Fprintf(w, "%s saw %s\n", name, from)
		}),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// Get asks a URL n times, each time over a new connection, and writes the
// answer, or, for more than one, how often each server answered. A server is
// the first word of an answer.
func Get(ctx context.Context, w io.Writer, url string, n int, timeout time.Duration) error {
	client := &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{Resolver: &net.Resolver{PreferGo: true}}).DialContext,
		},
	}
	tally := map[string]int{}
	for range n {
		body, err := getOnce(ctx, client, url)
		if err != nil {
			return err
		}
		if n == 1 {
			_, err := io.WriteString(w, body)
			return err
		}
		first, _, _ := strings.Cut(body, " ")
		tally[strings.TrimSpace(first)]++
	}
	names := make([]string, 0, len(tally))
	for name := range tally {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if _, err := fmt.Fprintf(w, "%4d %s\n", tally[name], name); err != nil {
			return err
		}
	}
	return nil
}

func getOnce(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s: %s", url, resp.Status, strings.TrimSpace(string(b)))
	}
	return string(b), nil
}

// upstreamZone is what the outside host's DNS server knows, so that
// forwarding can be shown and tested without the Internet.
const upstreamZone = `
$ORIGIN example.com.
$TTL 300
@    SOA  ns hostmaster 1 3600 600 86400 60
@    NS   ns
@    A    203.0.113.10
@    AAAA 2001:db8::10
@    MX   10 mail
ns   A    203.0.113.10
www  CNAME @
mail A    203.0.113.10
text TXT  "the outside"
10.113.0.203.in-addr.arpa. PTR example.com.
`

// Upstream answers DNS queries for a few names until ctx ends. Every other
// name does not exist.
func Upstream(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	h, err := newUpstream()
	if err != nil {
		return err
	}
	udp := &dns.Server{PacketConn: pc, Handler: h}
	tcp := &dns.Server{Listener: l, Handler: h}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(udp.ActivateAndServe)
	g.Go(tcp.ActivateAndServe)
	g.Go(func() error {
		<-ctx.Done()
		pc.Close()
		l.Close()
		return ctx.Err()
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve upstream DNS: %w", err)
	}
	return nil
}

func newUpstream() (dns.Handler, error) {
	rrs := map[string][]dns.RR{}
	zp := dns.NewZoneParser(strings.NewReader(upstreamZone), "", "")
	var soa dns.RR
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		name := dns.CanonicalName(rr.Header().Name)
		rrs[name] = append(rrs[name], rr)
		if rr.Header().Rrtype == dns.TypeSOA {
			soa = rr
		}
	}
	if err := zp.Err(); err != nil {
		return nil, fmt.Errorf("parse upstream zone: %w", err)
	}
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		if len(q.Question) == 1 {
			answer(m, rrs, q.Question[0])
			if len(m.Answer) == 0 && soa != nil {
				m.Ns = []dns.RR{soa}
			}
		}
		w.WriteMsg(m)
	}), nil
}

func answer(m *dns.Msg, rrs map[string][]dns.RR, q dns.Question) {
	name := dns.CanonicalName(q.Name)
	if len(rrs[name]) == 0 {
		m.Rcode = dns.RcodeNameError
		return
	}
	for _, rr := range rrs[name] {
		switch t := rr.Header().Rrtype; {
		case t == q.Qtype || q.Qtype == dns.TypeANY:
			m.Answer = append(m.Answer, rr)
		case t == dns.TypeCNAME:
			m.Answer = append(m.Answer, rr)
			q.Name = rr.(*dns.CNAME).Target
			answer(m, rrs, q)
		}
	}
}
