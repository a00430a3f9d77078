package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/node"
)

func (c *cli) snapshotCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "snapshot", Short: "Save and restore a node's state as one file"})
	cmd.AddCommand(c.snapshotSaveCmd(), c.snapshotRestoreCmd())
	return cmd
}

func (c *cli) snapshotSaveCmd() *cobra.Command {
	var secret bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save all records that the running node holds",
		Long: `Save all records that the running node holds, as of one moment. With
--with-secret the file also has the cluster's secret and the node's key, so that
the node can be made anew from it; keep such a file like the secret itself.`,
		Args: nargs(1, 1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Lstat(args[0]); err == nil {
				return fmt.Errorf("%s exists: choose another name, or remove it", args[0])
			}
			s, err := c.client().Snapshot(cmd.Context(), api.SnapshotRequest{Secret: secret})
			if err != nil {
				return err
			}
			if err := saveFile(args[0], s.Data); err != nil {
				return err
			}
			made := struct {
				File     string `json:"file"`
				Revision uint64 `json:"revision"`
				Records  int    `json:"records"`
				Bytes    int    `json:"bytes"`
				Secret   bool   `json:"secret"`
			}{args[0], s.Revision, s.Records, len(s.Data), secret}
			return c.print(made, func(w io.Writer) {
				fmt.Fprintf(w, "saved %d records of revision %d to %s (%s)\n", s.Records, s.Revision, args[0], size(uint64(len(s.Data))))
			})
		},
	}
	cmd.Flags().BoolVar(&secret, "with-secret", false, "with the cluster's secret and the node's key")
	return cmd
}

// saveFile writes a private file that is whole or not there.
func saveFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".nodenet-snapshot-*")
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("save %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

func (c *cli) snapshotRestoreCmd() *cobra.Command {
	var o node.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a saved state into the state directory; the daemon must not run",
		Long: `Put a saved state into the state directory of a daemon that does not run. A
snapshot of another cluster is refused. What was there is kept beside it.

Since the snapshot was saved, address space may have changed hands: the node
gives out no addresses before another one has told it. With --alone it goes on
without asking: only when no other node is left.`,
		Args: nargs(1, 1, "FILE (from 'nodectl snapshot save')"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if st, err := c.client().Status(cmd.Context()); err == nil && o.StateDir == "" {
				return fmt.Errorf("the daemon of %s is running: stop it first (systemctl stop nodenet)", st.Node)
			}
			o.File = args[0]
			r, err := c.engine.Restore(o)
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "restored cluster %s\n", r.Cluster)
				for _, s := range r.Explain {
					fmt.Fprintln(w, "- "+s)
				}
			})
		},
	}
	configFlags(cmd, &o.ConfigFile, &o.StateDir)
	cmd.Flags().BoolVar(&o.Alone, "alone", false, "no other node is left to ask")
	return cmd
}
