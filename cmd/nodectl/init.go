package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/node"
)

func (c *cli) initCmd() *cobra.Command {
	var o node.InitOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new cluster on this node, offline",
		Long: `Make a new cluster: its ID, its secret and the first owner of all address
ranges. Run it once, on one node, before the daemon starts; the other nodes
join with a token or with a copy of the secret.`,
		Example: "  nodectl init --cluster prod && systemctl start nodenet && nodectl token",
		Args:    noArgs(),
		RunE: func(*cobra.Command, []string) error {
			r, err := c.engine.Init(o)
			if err != nil {
				return err
			}
			return c.printCluster(clusterMade{r.Name, r.ClusterID, r.NodeID, r.SecretFile, nil})
		},
	}
	configFlags(cmd, &o.ConfigFile, &o.StateDir)
	cmd.Flags().StringVar(&o.Name, "cluster", "", "name of the cluster (default: the Nodefile's)")
	return cmd
}

func (c *cli) tokenCmd() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a one-time credential for a node that is to join",
		Long: `Make a one-time credential for a node that is to join. It goes to standard
output, so that it can be piped to 'nodectl join' on the new node.`,
		Example: "  nodectl token | ssh node4 nodectl join -",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usagef("--ttl %s: want at least 1s", ttl)
			}
			t, err := c.client().Token(cmd.Context(), api.TokenRequest{TTLSeconds: int64(ttl / time.Second)})
			if err != nil {
				return err
			}
			if c.output == "table" {
				fmt.Fprintf(c.err, "valid once, until %s\n", time.Unix(t.Expires, 0).Format(time.DateTime))
			}
			return c.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the credential is valid")
	return cmd
}

func (c *cli) joinCmd() *cobra.Command {
	var o node.JoinOptions
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Join the cluster that made the token",
		Long: `Join the cluster that made the token ('-' reads it from standard input). The
node and the cluster verify each other before the cluster's secret is handed
over and saved. Start the daemon afterwards.`,
		Args: nargs(1, 1, "TOKEN (from 'nodectl token' on a member)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Token = args[0]
			if o.Token == "-" {
				b, err := io.ReadAll(io.LimitReader(c.in, 64<<10))
				if err != nil {
					return fmt.Errorf("read the token from standard input: %w", err)
				}
				o.Token = strings.TrimSpace(string(b))
			}
			if o.Token == "" {
				return usagef("the token is empty: make one with 'nodectl token' on a member of the cluster")
			}
			r, err := c.engine.Join(cmd.Context(), o)
			if err != nil {
				return err
			}
			return c.printCluster(clusterMade{r.Name, r.ClusterID, "", r.SecretFile, r.Seeds})
		},
	}
	configFlags(cmd, &o.ConfigFile, &o.StateDir)
	return cmd
}

func (c *cli) leaveCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Leave the cluster for good",
		Long: `Leave the cluster for good: the node hands its address ranges to the others and
its names, routes and backends go away. For a restart, just stop the daemon.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return usagef("leave removes this node's addresses and services from the cluster for good: say --yes if that is meant")
			}
			if err := c.client().Leave(cmd.Context()); err != nil {
				return err
			}
			return c.print(api.Empty{}, func(w io.Writer) {
				fmt.Fprintln(w, "left the cluster, the daemon has stopped; 'nodectl cleanup' removes what it left in the kernel")
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really leave")
	return cmd
}

// clusterMade is what init and join answer.
type clusterMade struct {
	Cluster   string   `json:"cluster"`
	ClusterID string   `json:"clusterId"`
	NodeID    string   `json:"nodeId,omitempty"`
	Secret    string   `json:"secretFile"`
	Seeds     []string `json:"seeds,omitempty"`
}

func (c *cli) printCluster(m clusterMade) error {
	return c.print(m, func(w io.Writer) {
		fmt.Fprintf(w, "cluster\t%s\n", m.Cluster)
		fmt.Fprintf(w, "cluster ID\t%s\n", m.ClusterID)
		if m.NodeID != "" {
			fmt.Fprintf(w, "node ID\t%s\n", m.NodeID)
		}
		fmt.Fprintf(w, "secret\t%s\n", m.Secret)
		if len(m.Seeds) > 0 {
			fmt.Fprintf(w, "seeds\t%s\n", strings.Join(m.Seeds, " "))
		}
	})
}

// parseAddr reads an address given on the command line.
func parseAddr(flag, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, usagef("%s %s: not an IP address", flag, s)
	}
	return a.Unmap(), nil
}
