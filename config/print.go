package config

import (
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// String returns the effective configuration, defaults included, as a
// Nodefile. Parse of it gives an equal Config.
func (c *Config) String() string {
	var w printer
	w.node(c)
	for i := range c.Networks {
		w.network(&c.Networks[i])
	}
	w.services(&c.Services)
	for i := range c.Service {
		w.service(&c.Service[i])
	}
	for _, p := range c.Publishes {
		w.line("publish", p.host(), p.Target.String())
	}
	for i := range c.Policies {
		w.policy(&c.Policies[i])
	}
	for _, s := range c.Servers {
		w.open(s.Keys...)
		w.directives(s.Directives)
		w.shut()
	}
	return w.b.String()
}

// Print writes String to w.
func (c *Config) Print(w io.Writer) error {
	_, err := io.WriteString(w, c.String())
	return err
}

// Equal reports whether both mean the same, wherever they are written.
func (c *Config) Equal(o *Config) bool { return c.String() == o.String() }

// printer writes blocks. Empty words are left out, except in DNS directives.
type printer struct {
	b     strings.Builder
	depth int
}

func (w *printer) words(words []string) {
	w.b.WriteString(strings.Repeat("    ", w.depth))
	for i, s := range words {
		if i > 0 {
			w.b.WriteByte(' ')
		}
		// Every string that Parse yields has a form; one without, which only
		// code could make, is written as it is.
		if q, ok := quote(s); ok {
			s = q
		}
		w.b.WriteString(s)
	}
}

func (w *printer) line(words ...string) {
	w.words(words)
	w.b.WriteByte('\n')
}

// opt writes a directive unless its value is empty.
func (w *printer) opt(name, value string) {
	if value != "" {
		w.line(name, value)
	}
}

// list writes a directive with all values of a list, if there are any.
func list[T fmt.Stringer](w *printer, name string, values []T) {
	if len(values) == 0 {
		return
	}
	words := []string{name}
	for _, v := range values {
		words = append(words, shortPrefix(v))
	}
	w.line(words...)
}

func (w *printer) num(name string, n int) {
	if n != 0 {
		w.line(name, fmt.Sprint(n))
	}
}

func (w *printer) flag(name string, on bool) {
	if on {
		w.line(name)
	}
}

func (w *printer) open(words ...string) {
	w.words(words)
	w.b.WriteString(" {\n")
	w.depth++
}

func (w *printer) shut() {
	w.depth--
	w.line("}")
}

// shortPrefix is v's text; a prefix of one address is that address.
func shortPrefix(v fmt.Stringer) string {
	if p, ok := v.(netip.Prefix); ok && p.IsSingleIP() {
		return p.Addr().String()
	}
	return v.String()
}

// valid is v's text, "" for the zero value of netip's types.
func valid[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

func (w *printer) node(c *Config) {
	w.open("node")
	w.opt("name", c.Node.Name)
	w.opt("advertise", valid(c.Node.Advertise))
	w.opt("underlay", valid(c.Node.Underlay))
	w.opt("zone", c.Node.Zone)
	w.opt("state_dir", c.Node.StateDir)
	w.opt("socket", c.Node.Socket)
	w.shut()
	w.open("cluster", c.Cluster.Name)
	if len(c.Cluster.Join) > 0 {
		w.line(append([]string{"join"}, c.Cluster.Join...)...)
	}
	w.opt("secret", c.Cluster.Secret)
	w.num("gossip_port", int(c.Cluster.GossipPort))
	w.num("sync_port", int(c.Cluster.SyncPort))
	w.shut()
}

func (w *printer) network(n *Network) {
	w.open(dual([]string{"network", n.Name, n.Prefix.String()}, n.Prefix6)...)
	w.num("block", n.Block)
	w.opt("pin", valid(n.Pin))
	w.opt("overlay", n.Overlay)
	w.num("vni", int(n.VNI))
	w.num("port", int(n.Port))
	w.num("mtu", n.MTU)
	w.flag("masquerade", n.Masquerade)
	w.flag("internal", n.Internal)
	if len(n.Peers) > 0 {
		w.line(append([]string{"peer"}, n.Peers...)...)
	}
	w.opt("bridge", n.Bridge)
	w.opt("gateway", valid(n.Gateway))
	if n.NoGateway {
		w.line("gateway", "none")
	}
	for _, e := range n.Exclude {
		w.line("exclude", shortPrefix(e))
	}
	if n.NoSearch {
		w.line("search", "off")
	}
	if n.DHCP {
		w.open("dhcp")
		w.opt("lease", shortest(n.LeaseTime))
		w.opt("namespace", n.Namespace)
		w.shut()
	}
	w.shut()
}

// shortest returns 1h for an hour, where Duration.String has 1h0m0s.
func shortest(d time.Duration) string {
	s := d.String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
	}
	if short, ok := strings.CutSuffix(s, "h0m"); ok {
		s = short + "h"
	}
	return s
}

// dual adds the IPv6 range to the words of a block that has one.
func dual(words []string, p netip.Prefix) []string {
	if p.IsValid() {
		words = append(words, p.String())
	}
	return words
}

func (w *printer) services(s *ServiceRange) {
	w.open(dual([]string{"services", s.Prefix.String()}, s.Prefix6)...)
	w.opt("dns", valid(s.DNS))
	w.line("nodeports", fmt.Sprintf("%d-%d", s.NodePorts.First, s.NodePorts.Last))
	w.shut()
}

func (w *printer) service(s *Service) {
	w.open("service", s.FullName())
	switch {
	case s.Headless:
		w.line("vip", "none")
	case s.VIP.IsValid() || s.VIP6.IsValid():
		w.line(append([]string{"vip"}, strings.Fields(vipText(s.VIP, s.VIP6))...)...)
	}
	if len(s.Families) > 0 {
		w.line(append([]string{"families"}, s.Families...)...)
	}
	for _, p := range s.Ports {
		words := []string{"port"}
		if p.Name != "" {
			words = append(words, p.Name)
		}
		words = append(words, p.spec())
		if p.NodePort != 0 {
			words = append(words, "nodeport", fmt.Sprint(p.NodePort))
		}
		w.line(words...)
	}
	for _, k := range sortedKeys(s.Select) {
		w.line("select", k+"="+s.Select[k])
	}
	for _, b := range s.Backends {
		if b.Weight == 0 {
			w.line("backend", backendText(b.Addr))
		} else {
			w.line("backend", backendText(b.Addr), "weight", fmt.Sprint(b.Weight))
		}
	}
	w.opt("external", s.External)
	w.flag("nodeport", s.NodePorts)
	list(w, "nodeport_addresses", s.NodeAddrs)
	list(w, "address", s.Addresses)
	w.flag("announce", s.Announce)
	list(w, "source", s.Sources)
	w.num("health_port", int(s.HealthPort))
	w.opt("balance", s.Balance)
	w.opt("affinity", length(s.Affinity))
	w.opt("inside", s.Inside)
	w.opt("outside", s.Outside)
	w.opt("slow_start", length(s.SlowStart))
	w.probe(s.Probe)
	w.shut()
}

// probe writes a check; what is not the default goes into its block.
func (w *printer) probe(pr *Probe) {
	if pr == nil {
		return
	}
	if reflect.DeepEqual(*pr, Probe{Type: pr.Type}) {
		w.line("check", pr.Type)
		return
	}
	w.open("check", pr.Type)
	w.num("port", int(pr.Port))
	w.opt("path", pr.Path)
	w.opt("host", pr.Host)
	if len(pr.Command) > 0 {
		w.line(append([]string{"command"}, pr.Command...)...)
	}
	w.opt("interval", length(pr.Interval))
	w.opt("timeout", length(pr.Timeout))
	w.num("rise", pr.Rise)
	w.num("fall", pr.Fall)
	w.shut()
}

// length is a duration's text, "" for none.
func length(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return shortest(d)
}

// spec returns PORT[-LAST][:TARGET]/PROTO.
func (p *ServicePort) spec() string {
	number := fmt.Sprint(p.Port)
	if p.Last != 0 {
		number = fmt.Sprintf("%d-%d", p.Port, p.Last)
	}
	switch {
	case p.TargetName != "":
		return number + ":" + p.TargetName + "/" + p.Protocol
	case p.Target != 0:
		return fmt.Sprintf("%s:%d/%s", number, p.Target, p.Protocol)
	}
	return number + "/" + p.Protocol
}

// host returns [HOST:]PORT[-LAST]/PROTO.
func (p *Publish) host() string {
	s := fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
	if p.Last > p.HostPort {
		s = fmt.Sprintf("%d-%d/%s", p.HostPort, p.Last, p.Protocol)
	}
	if p.HostAddr.IsValid() {
		host := p.HostAddr.String()
		if p.HostAddr.Is6() {
			host = "[" + host + "]"
		}
		s = host + ":" + s
	}
	return s
}

func (w *printer) directives(ds []Directive) {
	for _, d := range ds {
		words := append([]string{d.Name}, d.Args...)
		if len(d.Block) == 0 {
			w.line(words...)
			continue
		}
		w.open(words...)
		w.directives(d.Block)
		w.shut()
	}
}
