package dns

import (
	"net/http"
	"net/http/pprof"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// logTrace logs the way of a question, one line a plugin that did more than
// pass it on.
func (s *Server) logTrace(q *query) {
	for _, st := range q.Trace.Steps() {
		if st.Decision == "passed on" && st.Err == "" {
			continue
		}
		args := []any{"client", q.Client, "name", st.Name, "type", wire.Type(st.Type), "plugin", st.Plugin, "decision", st.Decision, "took", st.Took}
		for _, extra := range []struct{ key, val string }{
			{"rcode", st.Rcode}, {"upstream", st.Upstream}, {"origin", st.Origin}, {"err", st.Err},
		} {
			if extra.val != "" {
				args = append(args, extra.key, extra.val)
			}
		}
		s.log.Info("dns trace", args...)
	}
}

// pprofPath is where profiles are.
const pprofPath = "/debug/pprof/"

// parsePprof reads `pprof [ADDRESS:PORT]`.
func parsePprof(p *parser, d config.Directive) plugin.Plugin {
	for _, o := range d.Block {
		if o.Name == "block" {
			p.Noticef(o, "pprof: block is ignored, the profile of blocking stays off")
			continue
		}
		p.Unknown(d, o, "block")
	}
	p.block.endpoint.pprof = p.httpAddress(d, "localhost:6053")
	return nil
}

// pprofHandler serves the profiles of the process.
func pprofHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, pprofPath) {
		case "cmdline":
			pprof.Cmdline(w, r)
		case "profile":
			pprof.Profile(w, r)
		case "symbol":
			pprof.Symbol(w, r)
		case "trace":
			pprof.Trace(w, r)
		default:
			pprof.Index(w, r)
		}
	})
}
