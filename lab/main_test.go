package lab

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/api"
)

// The test program stands in for nodectl: the lab calls it with the same
// arguments. Its daemon knows the control API and nothing else, so that what
// is tested here is the lab.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := standIn(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// With the race detector every process that ends would wait a second.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func standIn(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	state := fs.String("state", "", "")
	config := fs.String("config", "", "")
	socket := fs.String("socket", "", "")
	name := fs.String("name", "", "")
	port := fs.Int("port", 0, "")
	listen := fs.String("listen", "", "")
	switch args[0] {
	case "init":
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*state, "cluster.secret"), []byte("secret"), 0o600)
	case "join":
		if err := fs.Parse(args[2:]); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*state, "joined"), []byte(args[1]), 0o600)
	case "run":
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		return daemon(ctx, *config, *state, *socket)
	case "lab":
		switch args[1] {
		case "become":
			return Enter(View{Netns: "/proc/self/ns/net"}, args[2:])
		case "serve":
			if err := fs.Parse(args[2:]); err != nil {
				return err
			}
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
			if err != nil {
				return err
			}
			return Serve(ctx, *name, l)
		case "upstream":
			if err := fs.Parse(args[2:]); err != nil {
				return err
			}
			pc, err := net.ListenPacket("udp", *listen+":53")
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", *listen+":53")
			if err != nil {
				return err
			}
			return Upstream(ctx, pc, l)
		case "get":
			return Get(ctx, os.Stdout, args[2], 1, waitLimit)
		case "sysname": // what a process of the lab sees
			host, _ := os.Hostname()
			resolv, _ := os.ReadFile("/etc/resolv.conf")
			hosts, _ := os.ReadFile("/etc/hosts")
			fmt.Printf("%s|%s|%s|%s", host, os.Getenv("NODENET_SOCKET"), resolv, hosts)
			return nil
		}
	}
	return fmt.Errorf("the stand-in for nodectl does not know %q", args)
}

// daemon answers the control API as a healthy node of a cluster whose members
// are those listed in its Nodefile's directory beside its own.
func daemon(ctx context.Context, config, state, socket string) error {
	b, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	if strings.Contains(string(b), "crash "+filepath.Base(filepath.Dir(config))) {
		return fmt.Errorf("Nodefile asks for a crash")
	}
	self := os.Getenv("NODENET_NODE")
	_, errSecret := os.Stat(filepath.Join(state, "cluster.secret"))
	_, errJoined := os.Stat(filepath.Join(state, "joined"))
	if errSecret != nil && errJoined != nil {
		return fmt.Errorf("%s has neither secret nor token", self)
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
	mux.HandleFunc("GET "+api.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		st := api.Status{Node: self, Synced: true}
		sockets, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(socket)), "node*", "nodectl.sock"))
		for _, other := range sockets {
			name := filepath.Base(filepath.Dir(other))
			if name == self {
				continue
			}
			peer := api.Peer{Name: name, State: "dead"}
			if c, err := net.Dial("unix", other); err == nil {
				c.Close()
				peer.State = "alive"
			}
			st.Peers = append(st.Peers, peer)
		}
		answer(w, st)
	})
	mux.HandleFunc("POST "+api.PathToken, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Token{Token: "token-of-" + self})
	})
	mux.HandleFunc("POST "+api.PathAttach, func(w http.ResponseWriter, r *http.Request) {
		var req api.AttachRequest
		json.NewDecoder(r.Body).Decode(&req)
		if _, err := os.Stat(req.Netns); err != nil || req.Name == "bad" {
			w.WriteHeader(http.StatusBadRequest)
			answer(w, api.Error{Message: fmt.Sprintf("no attach for %s: %v", req.Name, err)})
			return
		}
		answer(w, api.Attachment{
			ID: req.Namespace + "." + req.Name, Addr: netip.MustParsePrefix("10.244.0.2/24"),
			ResolvConf: "nameserver 10.96.0.10\nsearch " + req.Namespace + ".svc.cluster.local\n",
		})
	})
	mux.HandleFunc("POST "+api.PathDetach, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Empty{}) })
	os.Remove(socket) // of a daemon that was killed
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}
