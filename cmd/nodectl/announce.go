package main

import (
	"fmt"

	"nodenet/api"
)

// announcementText says in one line who answers for an external address.
func announcementText(a *api.Announcement) string {
	text := a.Addr.String()
	switch {
	case a.Node == "":
		return fmt.Sprintf("%s announced by nobody: %s", text, a.Problem)
	case !a.Here:
		text += " announced by " + a.Node
	case a.State == "announced":
		text += fmt.Sprintf(" announced by %s (this node), %s at %s", a.Node, a.MAC, a.Device)
	case a.To != "":
		text += fmt.Sprintf(" %s to %s by %s (this node)", a.State, a.To, a.Node)
	default:
		text += fmt.Sprintf(" %s at %s (this node)", a.State, a.Node)
	}
	if a.Problem != "" {
		text += ": " + a.Problem
	}
	return text
}
