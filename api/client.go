package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// maxAnswer bounds what the client reads of one answer. A table of 100 000
// endpoints is about 40 MB of JSON.
const maxAnswer = 256 << 20

// Client talks to the control socket of one node. The zero value is not
// usable: call NewClient. It is safe for concurrent use and holds connections
// open until Close.
//
// Every method returns *Error when the node refused the request, so that a
// caller branches with errors.As on its Code, and *UnreachableError when
// nobody answers on the socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the control socket at this path. It does not
// connect: the first request does.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{}
	return &Client{
		socket: socket,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, "unix", socket)
				if errors.Is(err, fs.ErrPermission) {
					// Looking is allowed to everybody, on the socket beside it.
					if ro, roErr := dialer.DialContext(ctx, "unix", ReadOnlySocket(socket)); roErr == nil {
						return ro, nil
					}
				}
				return c, err
			},
			MaxIdleConns: 4,
		}},
	}
}

// ReadOnlySocket returns the path of the socket beside a control socket that
// every user may read from.
func ReadOnlySocket(socket string) string { return strings.TrimSuffix(socket, ".sock") + "-ro.sock" }

// Socket returns the path that the client dials.
func (c *Client) Socket() string { return c.socket }

// Close drops idle connections. The client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the node's own picture of itself and of its cluster.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, PathStatus)
}

// Endpoints returns the endpoints of all nodes.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return get[[]Endpoint](ctx, c, PathEndpoints)
}

// Routes returns what the overlay wants in this node's kernel.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return get[[]Route](ctx, c, PathRoutes)
}

// Leases returns the DHCP leases of all nodes.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return get[[]Lease](ctx, c, PathLeases)
}

// Services returns the services with their backends as this node sees them.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return get[[]Service](ctx, c, PathServices)
}

// AddService makes a service, or replaces the one of the same name.
func (c *Client) AddService(ctx context.Context, spec ServiceSpec) (Service, error) {
	return post[Service](ctx, c, PathServices, spec)
}

// Service returns one service, its connections counted. The name is
// NAME.NAMESPACE.
func (c *Client) Service(ctx context.Context, name string) (Service, error) {
	return get[Service](ctx, c, PathService+"?name="+url.QueryEscape(name))
}

// ChangeBackend adds or removes an explicit backend and returns the service.
func (c *Client) ChangeBackend(ctx context.Context, q BackendChange) (Service, error) {
	return post[Service](ctx, c, PathBackends, q)
}

// Admin weights or drains a backend and returns the service.
func (c *Client) Admin(ctx context.Context, q AdminRequest) (Service, error) {
	return post[Service](ctx, c, PathAdmin, q)
}

// RemoveService removes a service made with a command. The name is
// "NAME.NAMESPACE"; without a dot the namespace is "default".
func (c *Client) RemoveService(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, PathServices+"?name="+url.QueryEscape(name), nil, nil)
}

// Publishes returns the published ports of this node.
func (c *Client) Publishes(ctx context.Context) ([]Publish, error) {
	return get[[]Publish](ctx, c, PathPublishes)
}

// AddPublish publishes a port of this node.
func (c *Client) AddPublish(ctx context.Context, p Publish) (Publish, error) {
	return post[Publish](ctx, c, PathPublishes, p)
}

// RemovePublish removes a published port by the Key that Publishes shows.
func (c *Client) RemovePublish(ctx context.Context, key string) error {
	return c.do(ctx, http.MethodDelete, PathPublishes+"?key="+url.QueryEscape(key), nil, nil)
}

// Networks returns the networks that this node knows.
func (c *Client) Networks(ctx context.Context) ([]NetworkInfo, error) {
	return get[[]NetworkInfo](ctx, c, PathNetworks)
}

// Attach connects a network namespace to a network. When it returns, the
// endpoint is durable and its link, addresses and routes are in the kernel.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (Attachment, error) {
	return post[Attachment](ctx, c, PathAttach, r)
}

// Detach undoes Attach. What is not there counts as detached.
func (c *Client) Detach(ctx context.Context, r DetachRequest) error {
	return c.do(ctx, http.MethodPost, PathDetach, r, nil)
}

// Check returns an attachment, or an *Error with CodeDiffers when the kernel
// does not hold what the record says.
func (c *Client) Check(ctx context.Context, r DetachRequest) (Attachment, error) {
	return post[Attachment](ctx, c, PathCheck, r)
}

// Allocate takes an address without making a link. The request's Mode is set
// to "ipam"; Detach with the same ID gives the address back.
func (c *Client) Allocate(ctx context.Context, r AttachRequest) (Attachment, error) {
	r.Mode = "ipam"
	return post[Attachment](ctx, c, PathAllocate, r)
}

// Token makes a one-time join credential.
func (c *Client) Token(ctx context.Context, r TokenRequest) (Token, error) {
	return post[Token](ctx, c, PathToken, r)
}

// Leave makes the node hand its address ranges over and leave the cluster for
// good.
func (c *Client) Leave(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, PathLeave, Empty{}, nil)
}

// DNSQuery asks the node's own DNS server, without a socket in between.
func (c *Client) DNSQuery(ctx context.Context, q DNSQuery) (DNSAnswer, error) {
	return post[DNSAnswer](ctx, c, PathDNSQuery, q)
}

// Doctor runs the checks of the running node.
func (c *Client) Doctor(ctx context.Context) ([]Check, error) {
	return get[[]Check](ctx, c, PathDoctor)
}

// UnreachableError says that nobody answers on the control socket.
type UnreachableError struct {
	Socket string
	Err    error // of dial(2), as package net reports it
	// Stopped is why the daemon ended and must not simply be started again, in
	// its own words; empty: not known.
	Stopped string
}

// StoppedFile returns the path, beside a control socket, of a file in which a
// daemon that refuses to run says why. The next start removes it.
func StoppedFile(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".stopped" }

func unreachable(socket string, err error) *UnreachableError {
	e := &UnreachableError{Socket: socket, Err: err}
	if b, err := os.ReadFile(StoppedFile(socket)); err == nil {
		e.Stopped = strings.TrimSpace(string(b))
	}
	return e
}

func (e *UnreachableError) Error() string {
	const start = "start it with `systemctl start nodenet` or `nodectl run`, or name another socket with --socket"
	switch {
	case e.Stopped != "" && (errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, syscall.ECONNREFUSED)):
		return "the nodenet daemon refuses to run: " + e.Stopped
	case errors.Is(e.Err, fs.ErrNotExist):
		return fmt.Sprintf("the nodenet daemon is not running: there is no control socket %s: %s", e.Socket, start)
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("the nodenet daemon is not running: nobody listens on the control socket %s: %s", e.Socket, start)
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("connect to the control socket %s: permission denied: run as root or as a member of the group that owns the socket (nodenet)", e.Socket)
	}
	return fmt.Sprintf("connect to the control socket %s: %v", e.Socket, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	err = c.do(ctx, http.MethodGet, path, nil, &v)
	return v, err
}

func post[T any](ctx context.Context, c *Client, path string, body any) (v T, err error) {
	err = c.do(ctx, http.MethodPost, path, body, &v)
	return v, err
}

// do sends one request and decodes the answer into v, unless v is nil.
func (c *Client) do(ctx context.Context, method, path string, body, v any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode %s %s: %w", method, path, err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://nodenet"+path, rd)
	if err != nil {
		return fmt.Errorf("make request %s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" && ctx.Err() == nil {
			return unreachable(c.socket, op.Err)
		}
		// A *url.Error repeats the made-up URL: of no use to anybody.
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("%s %s on %s: %w", method, path, c.socket, err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode >= 400 {
		return answerError(resp, answer, method, path)
	}
	if v == nil {
		_, err := io.Copy(io.Discard, answer)
		return err
	}
	if err := json.NewDecoder(answer).Decode(v); err != nil {
		return fmt.Errorf("decode the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// answerError turns a failed answer into an *Error, whoever wrote the answer.
func answerError(resp *http.Response, answer io.Reader, method, path string) error {
	b, err := io.ReadAll(io.LimitReader(answer, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	e := new(Error)
	if json.Unmarshal(b, e) == nil && e.Message != "" {
		return e
	}
	e = &Error{Message: fmt.Sprintf("%s %s: %s", method, path, resp.Status)}
	if text := strings.TrimSpace(string(b)); text != "" {
		e.Message += ": " + text
	}
	if resp.StatusCode == http.StatusNotFound {
		e.Message += " (is the daemon older than this nodectl?)"
		e.Code = CodeNotFound
	}
	return e
}
