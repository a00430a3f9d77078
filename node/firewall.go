package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"nodenet/api"
)

// firewallFile in the state directory names the firewalls in whose chains
// rules are kept, so that a restart goes on with it. `nodectl cleanup` takes
// the rules away and leaves the file: the next start puts them back.
const firewallFile = "firewall.json"

type firewallSettings struct {
	Integrate []string `json:"integrate"`
}

// loadFirewalls tells the balancer what was integrated before.
func (n *Node) loadFirewalls() error {
	b, err := os.ReadFile(filepath.Join(n.dir, firewallFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read firewall settings: %w", err)
	}
	var s firewallSettings
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("read %s: %w: repair it, or remove it and integrate again", filepath.Join(n.dir, firewallFile), err)
	}
	n.lb.SetFirewalls(s.Integrate)
	return nil
}

// saveFirewalls replaces the file as a whole.
func (n *Node) saveFirewalls(list []string) error {
	b, err := json.Marshal(firewallSettings{list})
	if err != nil {
		return err
	}
	path := filepath.Join(n.dir, firewallFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save firewall settings: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("save firewall settings: %w", err)
	}
	return nil
}

func (n *Node) firewallRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+api.PathFirewall, get(n.firewalls))
	mux.HandleFunc("POST "+api.PathFirewall, post(n.changeFirewalls))
}

func (n *Node) firewalls(context.Context) ([]api.Firewall, error) {
	list, err := n.lb.Firewalls()
	if err != nil {
		return nil, err
	}
	out := []api.Firewall{}
	for _, f := range list {
		out = append(out, api.Firewall{Name: f.Name, Found: f.Found, On: f.On, Rules: f.Rules, Error: f.Error})
	}
	return out, nil
}

// changeFirewalls integrates, or takes integration back.
func (n *Node) changeFirewalls(ctx context.Context, r api.FirewallRequest) (*api.FirewallChange, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	if len(r.Names) == 0 && !r.Remove {
		return nil, invalid("firewall: name docker, ufw or firewalld")
	}
	lines, err := n.lb.Integrate(r.Names, r.Remove, r.DryRun)
	if err != nil {
		return nil, &api.Error{Message: err.Error(), Code: api.CodeInvalid}
	}
	if !r.DryRun {
		on := n.lb.Integrated()
		if err := n.saveFirewalls(on); err != nil {
			return nil, fmt.Errorf("%w: the rules are there, but a restart would not look after them", err)
		}
		n.log.Info("firewall integration", "on", strings.Join(on, " "), "operations", len(lines))
	}
	return &api.FirewallChange{Operations: lines}, nil
}
