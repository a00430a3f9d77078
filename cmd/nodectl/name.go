package main

import (
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) nameCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "name", Short: "Static DNS records, served by every node"})
	cmd.AddCommand(c.nameAddCmd(), c.nameRemoveCmd(), c.nameListCmd())
	return cmd
}

func (c *cli) nameAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME [A|AAAA|CNAME] TARGET",
		Short: "Add a static DNS record for the whole cluster",
		Long: `Add a static DNS record for the whole cluster. NAME is absolute, whether or not it
ends with a dot. Without a type an address makes an A or AAAA record, anything
else a CNAME. A name may have several addresses, or one CNAME and nothing else.`,
		Example: `  nodectl name add food.web-server 192.168.1.10
  nodectl name add eat.web-server CNAME food.web-server`,
		Args: nargs(2, 3, "NAME [A|AAAA|CNAME] TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n := api.Name{Name: args[0], Target: args[len(args)-1]}
			if len(args) == 3 {
				n.Type = strings.ToUpper(args[1])
			} else {
				n.Type = typeOf(n.Target)
			}
			made, err := c.client().AddName(cmd.Context(), n)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) { nameTable(w, []api.Name{made}) })
		},
	}
}

// typeOf is the type of record that a target alone asks for.
func typeOf(target string) string {
	switch a, err := netip.ParseAddr(target); {
	case err != nil:
		return "CNAME"
	case a.Unmap().Is4():
		return "A"
	}
	return "AAAA"
}

func (c *cli) nameRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME [TYPE [TARGET]]",
		Aliases: []string{"remove"},
		Short:   "Remove a static DNS record, or all that a name has",
		Args:    nargs(1, 3, "NAME [TYPE [TARGET]]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && !strings.EqualFold(args[1], "CNAME") {
				return usagef("name rm %s %s: missing the address: a name may have several", args[0], args[1])
			}
			if len(args) > 1 {
				args[0], args[1] = strings.ToLower(strings.TrimSuffix(args[0], ".")), strings.ToUpper(args[1])
				if args[1] == "CNAME" {
					args = args[:2]
				}
			}
			if err := c.client().RemoveName(cmd.Context(), strings.Join(args, " ")); err != nil {
				return err
			}
			return c.print(api.Empty{}, func(io.Writer) {})
		},
	}
}

func (c *cli) nameListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the static DNS records",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Names(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { nameTable(w, list) })
		},
	}
}

func nameTable(w io.Writer, list []api.Name) {
	row(w, "NAME", "TYPE", "TARGET")
	for _, n := range list {
		row(w, n.Name, n.Type, n.Target)
	}
}
