package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodenet/api"
)

// maxBody bounds a request to the control socket.
const maxBody = 1 << 20

// How long a connection may take for its header, and rest between requests.
const (
	headerWait = 5 * time.Second
	idleWait   = 30 * time.Second
)

// server is the control API on two sockets: one for root and the group
// nodenet, and one beside it that anybody may read from.
type server struct {
	node  *Node
	full  net.Listener
	ro    net.Listener
	fullH http.Handler
	roH   http.Handler
}

func (n *Node) listen() (*server, error) {
	s := &server{node: n}
	path := n.cfg.Node.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create control socket's directory: %w", err)
	}
	os.Remove(api.StoppedFile(path)) // mostly there is none
	gid := -1
	if g, err := user.LookupGroup("nodenet"); err == nil {
		gid, _ = strconv.Atoi(g.Gid)
	}
	var err error
	if s.full, err = listenUnix(path, 0o660, gid); err != nil {
		return nil, err
	}
	if s.ro, err = listenUnix(api.ReadOnlySocket(path), 0o666, -1); err != nil {
		s.full.Close()
		return nil, err
	}
	mux := n.routes()
	s.fullH = mux
	s.roH = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			fail(w, &api.Error{Message: "this socket is for looking only: to change something, run as root or as a member of group nodenet", Code: api.CodeForbidden})
			return
		}
		mux.ServeHTTP(w, r)
	})
	return s, nil
}

// listenUnix replaces a socket that a dead daemon left; the state directory's
// lock makes sure that it is dead.
func listenUnix(path string, mode os.FileMode, gid int) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace control socket: %w", err)
	}
	// Created closed, opened once owner and mode are right.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	if gid >= 0 {
		if err := os.Chown(path, -1, gid); err != nil {
			l.Close()
			return nil, fmt.Errorf("give control socket to group nodenet: %w", err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	return l, nil
}

func (s *server) run(ctx context.Context) error {
	full := &http.Server{Handler: s.fullH, ReadHeaderTimeout: headerWait, IdleTimeout: idleWait, ConnContext: withCredentials}
	// Anybody may connect to this one, and must not keep our descriptors: the
	// longest answer is the doctor's.
	ro := &http.Server{Handler: s.roH, ReadHeaderTimeout: headerWait, ReadTimeout: headerWait, IdleTimeout: idleWait, WriteTimeout: 30 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return full.Serve(s.full) })
	g.Go(func() error { return ro.Serve(s.ro) })
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return errors.Join(full.Shutdown(stop), ro.Shutdown(stop))
	})
	if err := g.Wait(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type credKey struct{}

// withCredentials reads who is at the other end of the control socket.
func withCredentials(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, credKey{}, cred)
}

// allowed checks the credentials that the socket was connected with, beyond
// the socket's mode: somebody may have opened that up. Whoever the kernel does
// not name is refused.
func allowed(ctx context.Context) bool {
	cred, ok := ctx.Value(credKey{}).(*unix.Ucred)
	if !ok {
		return false
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		return true
	}
	g, err := user.LookupGroup("nodenet")
	if err != nil {
		return false
	}
	if strconv.Itoa(int(cred.Gid)) == g.Gid {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	if err != nil {
		return false
	}
	for _, id := range ids {
		if id == g.Gid {
			return true
		}
	}
	return false
}

func fail(w http.ResponseWriter, err error) {
	var e *api.Error
	if !errors.As(err, &e) {
		e = &api.Error{Message: err.Error()}
	}
	if e.Message != err.Error() {
		e = &api.Error{Message: err.Error(), Code: e.Code}
	}
	status := http.StatusInternalServerError
	switch e.Code {
	case api.CodeNotFound:
		status = http.StatusNotFound
	case api.CodeExists, api.CodeReadOnly, api.CodeDiffers:
		status = http.StatusConflict
	case api.CodeInvalid:
		status = http.StatusBadRequest
	case api.CodeForbidden:
		status = http.StatusForbidden
	case api.CodeNotReady:
		status = http.StatusServiceUnavailable
	case api.CodeExhausted:
		status = http.StatusInsufficientStorage
	}
	reply(w, status, e)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller hung up: nobody to tell
}

// get answers a question.
func get[T any](fn func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r.Context())
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, v)
	}
}

// post carries out a request.
func post[Q, A any](fn func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Context()) {
			fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may change things", Code: api.CodeForbidden})
			return
		}
		var q Q
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&q); err != nil {
			fail(w, &api.Error{Message: fmt.Sprintf("request to %s: %v", r.URL.Path, err), Code: api.CodeInvalid})
			return
		}
		v, err := fn(r.Context(), q)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, v)
	}
}

// remove deletes what a query parameter names.
func remove(param string, fn func(context.Context, string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Context()) {
			fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may change things", Code: api.CodeForbidden})
			return
		}
		if err := fn(r.Context(), r.URL.Query().Get(param)); err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, api.Empty{})
	}
}

func (n *Node) routes() http.Handler {
	empty := func(err error) (api.Empty, error) { return api.Empty{}, err }
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathStatus, get(n.status))
	mux.HandleFunc("GET "+api.PathEndpoints, get(n.endpointList))
	mux.HandleFunc("GET "+api.PathRoutes, get(n.routeList))
	mux.HandleFunc("GET "+api.PathLeases, get(n.leaseList))
	mux.HandleFunc("GET "+api.PathNetworks, get(n.networkList))
	mux.HandleFunc("GET "+api.PathServices, get(func(context.Context) ([]api.Service, error) {
		return n.services(n.store.Snapshot()), nil
	}))
	mux.HandleFunc("POST "+api.PathServices, post(n.addService))
	mux.HandleFunc("DELETE "+api.PathServices, remove("name", n.removeService))
	mux.HandleFunc("GET "+api.PathPublishes, get(n.publishList))
	mux.HandleFunc("POST "+api.PathPublishes, post(n.addPublish))
	mux.HandleFunc("DELETE "+api.PathPublishes, remove("key", n.removePublish))
	n.policyRoutes(mux)
	mux.HandleFunc("POST "+api.PathAttach, post(n.attach))
	mux.HandleFunc("POST "+api.PathDetach, post(func(ctx context.Context, q api.DetachRequest) (api.Empty, error) {
		return empty(n.detach(ctx, q))
	}))
	mux.HandleFunc("POST "+api.PathCheck, post(n.check))
	mux.HandleFunc("POST "+api.PathAllocate, post(func(ctx context.Context, q api.AttachRequest) (*api.Attachment, error) {
		q.Mode = modeIPAM
		return n.attach(ctx, q)
	}))
	mux.HandleFunc("POST "+api.PathToken, post(n.token))
	mux.HandleFunc("POST "+api.PathLeave, func(w http.ResponseWriter, r *http.Request) {
		post(func(ctx context.Context, _ api.Empty) (api.Empty, error) { return empty(n.leaveCluster(ctx)) })(w, r)
		if _, err := os.Stat(filepath.Join(n.dir, leftFile)); err == nil {
			n.leaveOnce.Do(func() { close(n.leave) })
		}
	})
	mux.HandleFunc("POST "+api.PathDNSQuery, post(n.query))
	mux.HandleFunc("POST "+api.PathDNSTrace, post(n.trace))
	mux.HandleFunc("POST "+api.PathDNSTop, post(n.dnsTop))
	mux.HandleFunc("POST "+api.PathDNSWait, post(n.waitName))
	mux.HandleFunc("GET "+api.PathDoctor, get(n.doctor))
	n.serviceRoutes(mux)
	n.clusterRoutes(mux)
	n.firewallRoutes(mux)
	return mux
}
