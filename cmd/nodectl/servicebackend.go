package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/config"
)

func (c *cli) serviceBackendCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "backend", Short: "Backends that are no endpoints, each a record of its own"})
	var weight int
	add := &cobra.Command{
		Use:   "add SERVICE ADDR[:PORT]",
		Short: "Add a backend, or change its weight",
		Example: `  nodectl service backend add db.apps 192.0.2.7:3306
  nodectl service backend add db.apps 192.0.2.8 --weight 10`,
		Args: nargs(2, 2, "SERVICE ADDR[:PORT]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("weight") && (weight < 1 || weight > config.MaxWeight) {
				return usagef("--weight %d: want 1 to %d", weight, config.MaxWeight)
			}
			return c.changeBackend(cmd.Context(), args, api.BackendChange{Weight: weight})
		},
	}
	add.Flags().IntVar(&weight, "weight", 0, "share of connections, 1 to 256 times that of a backend with weight 1 (default 1)")
	rm := &cobra.Command{
		Use:     "rm SERVICE ADDR[:PORT]",
		Aliases: []string{"remove"},
		Short:   "Remove a backend that was added with a command",
		Args:    nargs(2, 2, "SERVICE ADDR[:PORT]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeBackend(cmd.Context(), args, api.BackendChange{Remove: true})
		},
	}
	cmd.AddCommand(add, rm)
	return cmd
}

func (c *cli) changeBackend(ctx context.Context, args []string, q api.BackendChange) error {
	q.Service, q.Backend = fullName(args[0]), args[1]
	if _, err := config.ParseBackend(args[1]); err != nil {
		return usagef("backend %v", err)
	}
	s, err := c.client().ChangeBackend(ctx, q)
	if err != nil {
		return err
	}
	return c.print(s, func(w io.Writer) { serviceTable(w, []api.Service{s}) })
}

func (c *cli) serviceWeightCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "weight SERVICE BACKEND N|default",
		Short: "Give a backend another share of new connections",
		Long: `Give a backend another share of new connections: N from 1 to 256 times that of a
backend with weight 1. What is connected stays. With default its declared weight
counts again.

BACKEND is the name, ID or address of an endpoint, or an address with its port.`,
		Example: `  nodectl service weight web.apps web-canary 1
  nodectl service weight web.apps web-1 99
  nodectl service weight web.apps 10.244.1.2 default`,
		Args: nargs(3, 3, "SERVICE BACKEND N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			weight := 0
			if args[2] != "default" {
				if _, err := fmt.Sscanf(args[2], "%d", &weight); err != nil || fmt.Sprint(weight) != args[2] || weight < 1 || weight > config.MaxWeight {
					return usagef("weight %s: want 1 to %d, or default", args[2], config.MaxWeight)
				}
			}
			s, err := c.client().Admin(cmd.Context(), api.AdminRequest{Service: fullName(args[0]), Backend: args[1], Weight: &weight})
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) { serviceDetail(w, &s, time.Now()) })
		},
	}
}

// drainEvery is how often a drain looks at the connections that are left.
const drainEvery = time.Second

func (c *cli) serviceDrainCmd() *cobra.Command {
	var deadline time.Duration
	var undo, detach bool
	cmd := &cobra.Command{
		Use:   "drain SERVICE BACKEND",
		Short: "Let a backend finish its connections and give it no new ones",
		Long: `Let a backend finish its connections and give it no new ones, unless the service
has no other. Shows how many are left until there are none or the deadline is
over, when what is left is reset. Interrupting this changes nothing about the
drain: --undo ends it.

BACKEND is the name, ID or address of an endpoint, or an address with its port.`,
		Example: `  nodectl service drain web.apps web-1 --deadline 5m
  nodectl service drain web.apps web-1 --undo`,
		Args: nargs(2, 2, "SERVICE BACKEND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case undo && cmd.Flags().Changed("deadline"):
				return usagef("--undo and --deadline exclude one another")
			case deadline < 0 || deadline%time.Second != 0 || cmd.Flags().Changed("deadline") && deadline == 0:
				return usagef("--deadline %s: want whole seconds", deadline)
			}
			drain := !undo
			q := api.AdminRequest{Service: fullName(args[0]), Backend: args[1], Drain: &drain, DeadlineSeconds: int64(deadline / time.Second)}
			s, err := c.client().Admin(cmd.Context(), q)
			if err != nil {
				return err
			}
			if drain && !detach && c.output != "json" {
				return c.watchDrain(cmd.Context(), q)
			}
			return c.print(s, func(w io.Writer) { serviceDetail(w, &s, time.Now()) })
		},
	}
	f := cmd.Flags()
	f.DurationVar(&deadline, "deadline", 0, "reset what is left after that long (default: never)")
	f.BoolVar(&undo, "undo", false, "take the backend in again")
	f.BoolVar(&detach, "detach", false, "do not wait for the connections to end")
	return cmd
}

// watchDrain prints how many connections a backend has left, whenever that
// changes, until there are none or it is over.
func (c *cli) watchDrain(ctx context.Context, q api.AdminRequest) error {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	last := ""
	for {
		s, err := c.client().Service(ctx, q.Service)
		if err != nil {
			return err
		}
		line, done := drainLine(findBackend(&s, q.Backend), time.Now())
		if count, _, _ := strings.Cut(line, ","); count != last {
			fmt.Fprintln(c.out, line)
			last = count
		}
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drainLine says where a drain is, and whether it is over. What may differ
// from second to second comes after the first comma.
func drainLine(b *api.ServiceBackend, now time.Time) (line string, done bool) {
	switch {
	case b == nil:
		return "the backend is gone", true
	case !b.Draining && !b.Failed:
		return "the drain was undone", true
	case b.Failed && b.Until != 0 && b.Until <= now.Unix():
		return "the deadline is over: what was left is reset", true
	case b.Conns == nil:
		return "connections cannot be counted here: see 'nodectl service show' on the backend's node", true
	case *b.Conns == 0:
		return "no connections left, counted on " + strings.Join(b.ConnsFrom, " "), true
	}
	line = count(*b.Conns, "connection") + " left"
	if b.Until != 0 {
		line += ", " + left(now, b.Until) + " to the deadline"
	}
	return line + ", counted on " + strings.Join(b.ConnsFrom, " "), false
}

// findBackend finds what a person called by name, ID or address, as the node
// does; nil: it is not there any more.
func findBackend(s *api.Service, text string) *api.ServiceBackend {
	for i := range s.Backends {
		b := &s.Backends[i]
		if b.Name == text || b.Endpoint == text || b.Addr.String() == text || b.Port != 0 && netip.AddrPortFrom(b.Addr, b.Port).String() == text {
			return b
		}
	}
	return nil
}
