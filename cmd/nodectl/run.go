package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"nodenet/node"
)

func (c *cli) runCmd() *cobra.Command {
	var configFile, stateDir, level, format string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground until SIGTERM or SIGINT.

Without a Nodefile the node runs alone with the default ranges. What it put
into the kernel stays there when it ends, so that workloads keep their
connections over a restart or an upgrade; 'nodectl cleanup' removes it.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return usagef("--log-level %s: want debug, info, warn or error", level)
			}
			opts := &slog.HandlerOptions{Level: l}
			var h slog.Handler
			switch format {
			case "text":
				h = slog.NewTextHandler(c.err, opts)
			case "json":
				h = slog.NewJSONHandler(c.err, opts)
			default:
				return usagef("--log-format %s: want text or json", format)
			}
			return c.engine.Run(cmd.Context(), node.Options{
				ConfigFile: configFile,
				StateDir:   stateDir,
				Socket:     c.socketIfSet(cmd),
				Logger:     slog.New(h),
				Version:    versionString(),
			})
		},
	}
	configFlags(cmd, &configFile, &stateDir)
	cmd.Flags().StringVar(&level, "log-level", "info", "least level that is logged: debug, info, warn, error")
	cmd.Flags().StringVar(&format, "log-format", "text", "log format on standard error: text or json")
	return cmd
}

// configFlags adds the flags of commands that work on the node's files.
func configFlags(cmd *cobra.Command, configFile, stateDir *string) {
	cmd.Flags().StringVarP(configFile, "config", "c", "", "Nodefile (default /etc/nodenet/Nodefile, if there is one)")
	cmd.Flags().StringVar(stateDir, "state", "", "state directory (default: the Nodefile's, else /var/lib/nodenet)")
	cmd.MarkFlagFilename("config")
	cmd.MarkFlagDirname("state")
}

// socketIfSet returns --socket when it or the environment names one, so that
// otherwise the Nodefile decides.
func (c *cli) socketIfSet(cmd *cobra.Command) string {
	if cmd.Flags().Changed("socket") || os.Getenv(envSocket) != "" {
		return c.socket
	}
	return ""
}
