package services

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"nodenet/lab"
	"nodenet/test/scenario"
	"nodenet/test/sctp"
)

// raw opens a raw SCTP socket in a namespace.
func raw[C net.Conn](t *testing.T, name string, open func() (C, error)) (c C) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in the namespace
		ns, err := netns.GetFromName(name)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			c, err = open()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("raw socket in %s: %v", name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveSCTP answers on port 3868 of a workload.
func serveSCTP(t *testing.T, w *scenario.Workload) {
	t.Helper()
	at := &net.IPAddr{IP: net.ParseIP(w.Addr)}
	c := raw(t, w.Name, func() (*net.IPConn, error) { return net.ListenIP("ip4:132", at) })
	done := make(chan error)
	go func() { done <- sctp.Serve(c, w.Name, 3868) }()
	t.Cleanup(func() {
		c.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", w.Name, err)
		}
	})
}

// associate opens an association and returns it with the peer's first answer.
func associate(t *testing.T, w *scenario.Workload, to string, port uint16) (*sctp.Assoc, string, error) {
	t.Helper()
	c := raw(t, w.Name, func() (*net.IPConn, error) { return net.DialIP("ip4:132", nil, &net.IPAddr{IP: net.ParseIP(to)}) })
	a, err := sctp.Dial(c, sctp.FreePort(), port)
	if err != nil {
		return nil, "", err
	}
	msg, err := a.Ask([]byte("?"))
	got, _, _ := strings.Cut(string(msg), "\n")
	return a, got, err
}

// TestSCTP: a service and published ports of SCTP, as operators make them, with
// associations across nodes and from outside.
func TestSCTP(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2})
	const node1, outside = "192.168.1.11", "192.168.1.3"
	hss1 := s.Workload(1, "hss-1", "--label app=hss --publish 3868:3868/sctp")
	hss2 := s.Workload(2, "hss-2", "--label app=hss")
	mme, ext := s.Workload(1, "mme", ""), s.Host("peer", outside)
	serveSCTP(t, hss1)
	serveSCTP(t, hss2)
	s.Run("node1", "nodectl service add hss --port 3868/sctp --select app=hss")
	c := s.Lab.Node(1).Client()
	defer c.Close()
	var vip string
	s.Eventually("node1 has both backends", soon, func() error {
		svc, err := c.Service(t.Context(), "hss.default")
		if err == nil && len(svc.Backends) != 2 {
			err = fmt.Errorf("%d backends", len(svc.Backends))
		}
		vip = svc.VIP.String()
		return err
	})
	// answers waits until a whole association gets the answer.
	answers := func(from *scenario.Workload, to string, port uint16, want string) {
		t.Helper()
		s.Eventually(fmt.Sprintf("%s:%d answers %s with %q", to, port, from.Name, want), soon, func() error {
			a, got, err := associate(t, from, to, port)
			if err == nil {
				err = a.Close()
			}
			if err == nil && got != want {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	}
	answers(mme, vip, 3868, "hss-1 "+mme.Addr)
	answers(mme, vip, 3868, "hss-2 "+mme.Addr)
	answers(ext, node1, 3868, "hss-1 "+outside)

	s.Run("node1", "nodectl publish add 3869/sctp "+hss2.Addr+":3868")
	answers(ext, node1, 3869, "hss-2 "+node1)
	s.Want(s.Run("node1", "nodectl publish ls"), `\*:3868/sctp +`+hss1.Addr+`:3868 +default\.hss-1`, `\*:3869/sctp +`+hss2.Addr+`:3868`)
	s.Want(s.Fail("node1", "nodectl publish add 127.0.0.1:3870/sctp "+hss1.Addr+":3868"), "SCTP is not served on loopback")
	s.Want(s.Fail("node1", "nodectl publish add 3868/sctp "+hss2.Addr+":3868"), "published already")
	s.Run("node1", "nodectl publish rm 3869/sctp")
	s.Eventually("an unpublished port is refused", soon, func() error {
		if _, got, err := associate(t, ext, node1, 3869); !errors.Is(err, sctp.ErrRefused) {
			return fmt.Errorf("got %q, %v", got, err)
		}
		return nil
	})

	// An association counts until it is closed.
	a, got, err := associate(t, mme, vip, 3868)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(got, " ")
	counted := func(want int) {
		t.Helper()
		s.Eventually(fmt.Sprintf("%s has %d connections", name, want), soon, func() error {
			svc, err := c.Service(t.Context(), "hss.default")
			if err != nil {
				return err
			}
			for _, b := range svc.Backends {
				if b.Name == name && b.Conns != nil && *b.Conns == want {
					return nil
				}
			}
			return fmt.Errorf("%+v", svc.Backends)
		})
	}
	counted(1)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	counted(0)
}
