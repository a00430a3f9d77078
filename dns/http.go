package dns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// httpEndpoints are the addresses of health, ready and prometheus; empty: not
// given. A missing host means every address, as in CoreDNS.
type httpEndpoints struct {
	health, ready, metrics, pprof string
	lameduck                      time.Duration // how long to go on, unhealthy, after the end
}

func parseHealth(p *parser, d config.Directive) plugin.Plugin {
	p.block.endpoint.health = p.httpAddress(d, ":8080")
	for _, o := range d.Block {
		if o.Name != "lameduck" {
			p.Unknown(d, o, "lameduck")
			continue
		}
		if p.Args(o, 1, 1, "lameduck DURATION") {
			p.block.endpoint.lameduck, _ = p.Duration(o, "time", o.Args[0], 0)
		}
	}
	return nil
}

func parseReady(p *parser, d config.Directive) plugin.Plugin {
	for _, o := range d.Block {
		if o.Name != "monitor" {
			p.Unknown(d, o, "monitor")
		} else if p.Args(o, 1, 1, "monitor until-ready|continuously") && o.Args[0] != "continuously" && o.Args[0] != "until-ready" {
			p.Errorf(o.Pos, "ready: monitor %q is not known, write until-ready or continuously", o.Args[0])
		}
	}
	p.block.endpoint.ready = p.httpAddress(d, ":8181")
	return nil
}

func parsePrometheus(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	p.block.endpoint.metrics = p.httpAddress(d, "localhost:9153")
	return nil
}

func (p *parser) httpAddress(d config.Directive, standard string) string {
	if !p.Args(d, 0, 1, d.Name+" [ADDRESS:PORT]") || len(d.Args) == 0 {
		return standard
	}
	return p.HostPort(d, d.Args[0])
}

// httpServer serves some paths on one address.
type httpServer struct {
	paths []string
	srv   *http.Server
	done  chan struct{}
}

// serveHTTP opens and closes the HTTP listeners that differ from what the
// blocks ask for. Blocks may share an address.
func (s *Server) serveHTTP(now time.Time) {
	want := make(map[string][]string)
	ask := func(addr, path string) {
		if addr != "" && !slices.Contains(want[addr], path) {
			want[addr] = append(want[addr], path)
			slices.Sort(want[addr])
		}
	}
	for _, b := range s.live.Load().blocks {
		ask(b.endpoint.health, "/health")
		ask(b.endpoint.ready, "/ready")
		ask(b.endpoint.metrics, "/metrics")
		ask(b.endpoint.pprof, pprofPath)
	}
	for addr, h := range s.httpd {
		if !slices.Equal(want[addr], h.paths) {
			h.close()
			delete(s.httpd, addr)
		}
	}
	for addr, paths := range want {
		key := "http " + addr
		if s.httpd[addr] != nil || now.Before(s.backoff[key].at) {
			continue
		}
		ln, err := s.opt.Listen(s.background, "tcp", addr)
		if err != nil {
			s.postpone(key, now)
			s.note(key, err, fmt.Sprintf("give %s another address in the Nodefile", strings.Join(paths, " and ")))
			continue
		}
		s.httpd[addr] = s.openHTTP(ln, paths)
		s.settle(key)
	}
	s.forget("http ", func(key string) bool { return want[key[len("http "):]] != nil })
}

func (s *Server) openHTTP(ln net.Listener, paths []string) *httpServer {
	mux := http.NewServeMux()
	for _, path := range paths {
		mux.Handle("GET "+path, s.httpHandler(path))
	}
	h := &httpServer{paths: paths, done: make(chan struct{}), srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	go func() {
		defer close(h.done)
		_ = h.srv.Serve(ln) // ends with ErrServerClosed only
	}()
	return h
}

func (h *httpServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if h.srv.Shutdown(ctx) != nil {
		_ = h.srv.Close() // somebody holds a connection
	}
	<-h.done
}

func (s *Server) httpHandler(path string) http.Handler {
	switch path {
	case "/metrics":
		return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
	case pprofPath:
		return pprofHandler()
	case "/ready":
		return statusHandler(s.unready)
	}
	return statusHandler(func() string {
		if s.draining.Load() {
			return "shutting down"
		}
		return ""
	})
}

// statusHandler answers 200 OK, or 503 with what is missing.
func statusHandler(missing func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if m := missing(); m != "" {
			http.Error(w, m, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "OK")
	})
}

// unready says what is missing for readiness, or "".
func (s *Server) unready() string {
	var missing []string
	if s.draining.Load() {
		missing = append(missing, "shutting down")
	}
	if s.applied.Load() == nil && s.hasCluster() {
		missing = append(missing, "cluster data")
	}
	if s.opt.Ready != nil && !s.opt.Ready() {
		missing = append(missing, "node")
	}
	return strings.Join(missing, ", ")
}

func (s *Server) hasCluster() bool {
	for _, b := range s.live.Load().blocks {
		for _, p := range b.plugins {
			if _, ok := p.Plugin.(*cluster); ok {
				return true
			}
		}
	}
	return false
}
