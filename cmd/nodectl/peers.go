package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) peersCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "peers",
		Short: "List the other nodes: state, distance, what they lack, traffic",
		Long: `List the other nodes. LAG is how many of this node's records a peer lacks;
IN and OUT count this node's stream with it.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Peers(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { peersTable(w, list, time.Now()) })
		},
	}
}

func peersTable(w io.Writer, list []api.PeerDetail, now time.Time) {
	row(w, "PEER", "STATE", "SINCE", "ADDRESS", "RTT", "LAST SYNC", "LAG", "IN", "OUT", "VERSION", "")
	for _, p := range list {
		rtt, sync, lag, began := "", "never", "?", ""
		if p.RTTMicro > 0 {
			rtt = fmt.Sprintf("%.2f ms", float64(p.RTTMicro)/1000)
		}
		if p.LastSync >= 0 {
			sync = ago(time.Duration(p.LastSync) * time.Millisecond)
		}
		if p.Lag >= 0 {
			lag = fmt.Sprint(p.Lag)
		}
		if p.Since > 0 {
			began = age(now, p.Since)
		}
		row(w, p.Name, p.State, began, addrText(p.Address), rtt, sync, lag, size(p.BytesIn), size(p.BytesOut), p.Version, peerNote(p.SkewMicro, p.Flapping, p.LastError))
	}
}

// peerNote is what is out of the ordinary about a peer.
func peerNote(skewMicro, flapping int64, rest ...string) string {
	var notes []string
	if flapping > 0 {
		notes = append(notes, fmt.Sprintf("flapping, back in %d s", (flapping+999)/1000))
	}
	switch d := time.Duration(skewMicro) * time.Microsecond; {
	case d > time.Second:
		notes = append(notes, fmt.Sprintf("clock %s ahead", d.Round(100*time.Millisecond)))
	case d < -time.Second:
		notes = append(notes, fmt.Sprintf("clock %s behind", (-d).Round(100*time.Millisecond)))
	}
	for _, r := range rest {
		if r != "" {
			notes = append(notes, r)
		}
	}
	return strings.Join(notes, "; ")
}

func size(n uint64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
