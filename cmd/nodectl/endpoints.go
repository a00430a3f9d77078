package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) endpointsCmd() *cobra.Command {
	var node, namespace string
	cmd := &cobra.Command{
		Use:   "endpoints",
		Short: "List the endpoints of all nodes",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := c.client().Endpoints(cmd.Context())
			if err != nil {
				return err
			}
			list := []api.Endpoint{}
			for _, e := range all {
				if (node == "" || e.Node == node) && (namespace == "" || e.Namespace == namespace) {
					list = append(list, e)
				}
			}
			return c.print(list, func(w io.Writer) { endpointTable(w, list) })
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only those of this node")
	cmd.Flags().StringVar(&namespace, "namespace", "", "only those of this namespace")
	return cmd
}

func endpointTable(w io.Writer, list []api.Endpoint) {
	row(w, "NAME", "ADDRESS", "NODE", "NETWORK", "KIND", "READY", "LABELS")
	for _, e := range list {
		name := e.Name + "." + e.Namespace
		if e.Name == "" {
			name = e.ID
		}
		ready := "yes"
		switch {
		case !e.Ready:
			ready = "no"
		case !e.Serving:
			ready = "no: node gone"
		}
		labels := labelsText(e.Labels)
		if labels == "" {
			labels = "-"
		}
		row(w, name, join(e.Addrs, " "), e.Node, e.Network, e.Kind, ready, labels)
	}
}

func (c *cli) routesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "routes",
		Short: "List the routes to all nodes' pod CIDRs, and why they go that way",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Routes(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { routeTable(w, list) })
		},
	}
}

func routeTable(w io.Writer, list []api.Route) {
	row(w, "NETWORK", "PREFIX", "NODE", "STATE", "VIA", "NEXT HOP", "DEVICE", "MAC", "KERNEL", "REASON")
	for _, r := range list {
		kernel := "yes"
		if !r.InKernel {
			kernel = "MISSING"
		}
		reason := r.Reason
		if reason == "" {
			reason = "-"
		}
		row(w, r.Network, r.Prefix, r.Node, r.State, r.Via, addrText(r.NextHop), r.Device, r.MAC, kernel, reason)
	}
}

func (c *cli) leaseCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "lease", Short: "Look at DHCP leases"})
	cmd.AddCommand(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the DHCP leases of all nodes",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Leases(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { leaseTable(w, list, time.Now()) })
		},
	})
	return cmd
}

func leaseTable(w io.Writer, list []api.Lease, now time.Time) {
	row(w, "NETWORK", "ADDRESS", "MAC", "HOST NAME", "SERVER", "EXPIRES")
	for _, l := range list {
		left := time.Unix(l.Expires, 0).Sub(now)
		expires := fmt.Sprintf("in %s", left.Truncate(time.Second))
		if left <= 0 {
			expires = "expired"
		}
		row(w, l.Network, l.Addr, l.MAC, l.Hostname, l.Server, expires)
	}
}
