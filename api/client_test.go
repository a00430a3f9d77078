package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// serve answers on a unix socket with h and returns a client for it.
func serve(t *testing.T, h http.Handler) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = l
	srv.Start()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c
}

// TestClientRequests checks method, path, query and body of every call, and
// that the answer is decoded.
func TestClientRequests(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.7")
	for _, tt := range []struct {
		name   string
		call   func(context.Context, *Client) (any, error)
		want   string // method, request URI, body
		answer string
		got    any
	}{
		{
			name:   "status",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Status(ctx) },
			want:   "GET /v1/status ",
			answer: `{"node":"node1","revision":812}`,
			got:    Status{Node: "node1", Revision: 812},
		}, {
			name:   "endpoints",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Endpoints(ctx) },
			want:   "GET /v1/endpoints ",
			answer: `[{"id":"apps.web","addrs":["192.0.2.7"]}]`,
			got:    []Endpoint{{ID: "apps.web", Addrs: []netip.Addr{addr}}},
		}, {
			name:   "routes",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Routes(ctx) },
			want:   "GET /v1/routes ",
			answer: `[{"network":"pods","prefix":"192.0.2.0/24"}]`,
			got:    []Route{{Network: "pods", Prefix: netip.MustParsePrefix("192.0.2.0/24")}},
		}, {
			name:   "leases",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Leases(ctx) },
			want:   "GET /v1/leases ",
			answer: `[{"network":"pods","addr":"192.0.2.7"}]`,
			got:    []Lease{{Network: "pods", Addr: addr}},
		}, {
			name:   "services",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Services(ctx) },
			want:   "GET /v1/services ",
			answer: `[{"name":"web"}]`,
			got:    []Service{{Name: "web"}},
		}, {
			name: "add service",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.AddService(ctx, ServiceSpec{Name: "web", Namespace: "apps", VIP: addr})
			},
			want:   `POST /v1/services {"name":"web","namespace":"apps","vip":"192.0.2.7","ports":null}`,
			answer: `{"name":"web","vip":"192.0.2.7"}`,
			got:    Service{Name: "web", VIP: addr},
		}, {
			name: "remove service",
			call: func(ctx context.Context, c *Client) (any, error) {
				return nil, c.RemoveService(ctx, "web.apps")
			},
			want:   "DELETE /v1/services?name=web.apps ",
			answer: `{}`,
		}, {
			name:   "publishes",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Publishes(ctx) },
			want:   "GET /v1/publishes ",
			answer: `[]`,
			got:    []Publish{},
		}, {
			name: "add publish",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.AddPublish(ctx, Publish{Protocol: "tcp", HostPort: 8443, Target: addr, Port: 443})
			},
			want:   `POST /v1/publishes {"protocol":"tcp","hostPort":8443,"target":"192.0.2.7","port":443}`,
			answer: `{"key":"*:8443/tcp"}`,
			got:    Publish{Key: "*:8443/tcp"},
		}, {
			name:   "remove publish",
			call:   func(ctx context.Context, c *Client) (any, error) { return nil, c.RemovePublish(ctx, "*:8443/tcp") },
			want:   "DELETE /v1/publishes?key=%2A%3A8443%2Ftcp ",
			answer: `{}`,
		}, {
			name:   "networks",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Networks(ctx) },
			want:   "GET /v1/networks ",
			answer: `[{"name":"pods"}]`,
			got:    []NetworkInfo{{Name: "pods"}},
		}, {
			name: "attach",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.Attach(ctx, AttachRequest{Network: "pods", Netns: "/run/netns/web"})
			},
			want:   `POST /v1/attach {"network":"pods","netns":"/run/netns/web"}`,
			answer: `{"id":"default.web","addr":"192.0.2.7/24"}`,
			got:    Attachment{ID: "default.web", Addr: netip.MustParsePrefix("192.0.2.7/24")},
		}, {
			name:   "detach",
			call:   func(ctx context.Context, c *Client) (any, error) { return nil, c.Detach(ctx, DetachRequest{ID: "a"}) },
			want:   `POST /v1/detach {"id":"a"}`,
			answer: `{}`,
		}, {
			name:   "check",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Check(ctx, DetachRequest{ID: "a"}) },
			want:   `POST /v1/check {"id":"a"}`,
			answer: `{"id":"a"}`,
			got:    Attachment{ID: "a"},
		}, {
			name: "allocate",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.Allocate(ctx, AttachRequest{Network: "pods"})
			},
			want:   `POST /v1/allocate {"network":"pods","mode":"ipam"}`,
			answer: `{"id":"a"}`,
			got:    Attachment{ID: "a"},
		}, {
			name:   "token",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Token(ctx, TokenRequest{TTLSeconds: 60}) },
			want:   `POST /v1/token {"ttlSeconds":60}`,
			answer: `{"token":"t","expires":7}`,
			got:    Token{Token: "t", Expires: 7},
		}, {
			name:   "leave",
			call:   func(ctx context.Context, c *Client) (any, error) { return nil, c.Leave(ctx) },
			want:   `POST /v1/leave {}`,
			answer: `{}`,
		}, {
			name:   "dns query",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.DNSQuery(ctx, DNSQuery{Name: "web."}) },
			want:   `POST /v1/dns/query {"name":"web."}`,
			answer: `{"rcode":"NOERROR"}`,
			got:    DNSAnswer{Rcode: "NOERROR"},
		}, {
			name:   "doctor",
			call:   func(ctx context.Context, c *Client) (any, error) { return c.Doctor(ctx) },
			want:   "GET /v1/doctor ",
			answer: `[{"name":"forwarding","status":"ok"}]`,
			got:    []Check{{Name: "forwarding", Status: "ok"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen string
			c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var body json.RawMessage
				if r.ContentLength > 0 {
					if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
						t.Error(err)
					}
				}
				seen = r.Method + " " + r.RequestURI + " " + string(body)
				w.Write([]byte(tt.answer))
			}))
			got, err := tt.call(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, seen); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.got, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClientErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   Error
	}{
		{"typed", 409, `{"error":"attachment apps.web exists","code":"exists"}`,
			Error{Message: "attachment apps.web exists", Code: CodeExists}},
		{"not ours", 502, "upstream broke\n",
			Error{Message: "GET /v1/status: 502 Bad Gateway: upstream broke"}},
		{"unknown path", 404, "404 page not found\n",
			Error{Message: "GET /v1/status: 404 Not Found: 404 page not found (is the daemon older than this nodectl?)", Code: CodeNotFound}},
		{"empty body", 500, "", Error{Message: "GET /v1/status: 500 Internal Server Error"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				w.Write([]byte(tt.body))
			}))
			_, err := c.Status(t.Context())
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("error %v (%T): want *Error", err, err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestClientUnreachable(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // a socket file that a killed daemon left behind
	l.Close()

	for _, tt := range []struct {
		name, socket, want string
	}{
		{"missing", filepath.Join(dir, "none"), "there is no control socket"},
		{"refused", dead, "nobody listens on the control socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewClient(tt.socket).Status(t.Context())
			var ue *UnreachableError
			if !errors.As(err, &ue) {
				t.Fatalf("error %v (%T): want *UnreachableError", err, err)
			}
			for _, want := range []string{"not running", tt.want, tt.socket, "systemctl start nodenet", "nodectl run", "--socket"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
	t.Run("permission", func(t *testing.T) {
		e := &UnreachableError{Socket: dead, Err: os.ErrPermission}
		if !strings.Contains(e.Error(), "run as root") {
			t.Errorf("error %q does not say what to do", e)
		}
	})
}

func TestClientContext(t *testing.T) {
	started := make(chan struct{})
	c := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v: want context.Canceled", err)
	}
}

func TestClientBadAnswer(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{")) }))
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "decode the answer to GET /v1/status") {
		t.Fatalf("error %v", err)
	}
}
