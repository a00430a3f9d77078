package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

const (
	exporterLabel = "EXPORTER-nodenet-join"
	joinTimeout   = 10 * time.Second // for each seed
)

// Join redeems a token: it asks the seeds in it, the issuer first, checks that
// they belong to the cluster, proves that it knows the code, and saves the
// secret it is given in secretPath and the cluster in dir. A nil log discards.
//
// The exchange, on a TLS connection of its own protocol (ALPN):
//
//	joiner ── which code ───────────────────► issuer
//	joiner ◄─ CA key ───────────────────────  issuer   must match the token, and have signed the certificate
//	joiner ── HMAC(code, this connection) ──► issuer   marks the code used
//	joiner ◄─ HMAC the other way, secret ───  issuer
func Join(ctx context.Context, token string, dir, secretPath string, log *slog.Logger) (*Cluster, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if err := joinable(t, dir, secretPath); err != nil {
		return nil, err
	}
	id, err := LoadIdentity(dir)
	if err != nil {
		return nil, err
	}
	cert, err := certificate(id, id.Key)
	if err != nil {
		return nil, err
	}
	name, _ := os.Hostname()
	var errs []error
	for _, seed := range t.Seeds {
		g, err := redeem(ctx, seed, t, cert, name)
		if err != nil {
			log.Warn("seed did not let us join", "addr", seed, "err", err)
			errs = append(errs, fmt.Errorf("%s: %w", seed, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		c := &Cluster{ID: g.ClusterID, Name: printable(g.Cluster), RingID: g.RingID, Seeds: g.Seeds}
		if old, err := LoadCluster(dir); err == nil && old.ID == c.ID {
			// It was a member before and missed a rotation.
			old.Seeds = c.Seeds
			c = old
		}
		r := Keyring{Cluster: g.ClusterID, Primary: g.Secret, Next: g.Next, Previous: g.Previous}
		if len(g.Primary) > 0 {
			r.Primary = g.Primary
		}
		// The secret first: a cluster without its secret could not start.
		if err := WriteSecret(secretPath, r.Primary); err != nil {
			return nil, err
		}
		if err := r.Save(dir); err != nil {
			return nil, err
		}
		if err := c.Save(dir); err != nil {
			return nil, err
		}
		log.Info("joined cluster", "cluster", c.Name, "id", c.ID, "seed", seed)
		return c, nil
	}
	return nil, fmt.Errorf("join %s: %w", label("", t.ClusterID), errors.Join(errs...))
}

// joinable refuses to overwrite another cluster's state.
func joinable(t *Token, dir, secretPath string) error {
	c, err := LoadCluster(dir)
	switch {
	case err == nil && c.ID != "" && c.ID != t.ClusterID:
		return fmt.Errorf("join %s: this node belongs to %s: run `nodectl leave` first, then remove the state directory %s",
			label("", t.ClusterID), label(c.Name, c.ID), dir)
	case err == nil && c.ID == t.ClusterID:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := os.Stat(secretPath); err == nil {
		return fmt.Errorf("join %s: there is a secret in %s that belongs to another cluster, or was copied there: "+
			"remove it to join with a token, or keep it and configure `join` instead", label("", t.ClusterID), secretPath)
	}
	return nil
}

// redeem asks one seed.
func redeem(ctx context.Context, addr string, t *Token, cert tls.Certificate, name string) (*grant, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", hostPort(addr, DefaultSyncPort))
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(joinTimeout))
	conn := tls.Client(raw, tlsConfig(cert, alpnJoin))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w: is that nodenet's sync port?", err)
	}
	cs := conn.ConnectionState()
	exporter, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("bind to the connection: %w", err)
	}
	if err := writeFrame(conn, &joinHello{Proto: protoVersion, ClusterID: t.ClusterID, Code: t.ID, Name: name}); err != nil {
		return nil, err
	}
	ch, err := expect[*challenge](conn)
	if err != nil {
		return nil, err
	}
	if !sameKey(ch.CA, t.CA) {
		return nil, errors.New("the node there holds another cluster's secret than the token was made with: check the address")
	}
	if _, err := verifyPeer(cs, ed25519.PublicKey(ch.CA)); err != nil {
		return nil, fmt.Errorf("the node there is not of the cluster: %w", err)
	}
	key := codeKey(t.Code)
	if err := writeFrame(conn, &proof{MAC: codeMAC(key, exporter, "joiner")}); err != nil {
		return nil, err
	}
	g, err := expect[*grant](conn)
	if err != nil {
		return nil, err
	}
	k, err := deriveKeys(g.Secret)
	switch {
	case !hmac.Equal(g.MAC, codeMAC(key, exporter, "issuer")):
		return nil, errors.New("the node there does not know the token's code")
	case g.ClusterID != t.ClusterID:
		return nil, fmt.Errorf("the node there belongs to %s", label(printable(g.Cluster), printable(g.ClusterID)))
	case err != nil:
		return nil, err
	case !sameKey(k.caPublic(), t.CA):
		return nil, errors.New("the secret that came is not the one that the token was made with")
	}
	for _, s := range [][]byte{g.Primary, g.Next, g.Previous} {
		if len(s) > 0 && len(s) != SecretSize {
			return nil, fmt.Errorf("a secret of %d bytes came: want %d", len(s), SecretSize)
		}
	}
	return g, nil
}

// expect reads one frame of a type, or the reason of a refusal.
func expect[T frame](conn net.Conn) (T, error) {
	var want T
	f, _, err := readFrame(conn, maxEarly)
	if err != nil {
		return want, fmt.Errorf("connection ended early: %w", err)
	}
	switch f := f.(type) {
	case T:
		return f, nil
	case *refuse:
		return want, &RefusedError{f.Code, printable(f.Reason)}
	}
	return want, errors.New("unexpected answer: another version?")
}

func writeFrame(conn net.Conn, f frame) error {
	b, err := encodeFrame(f)
	if err != nil {
		return err
	}
	_, err = conn.Write(b)
	return err
}

// answerJoin is the issuer's side.
func (g *Gossip) answerJoin(conn *tls.Conn, remote netip.Addr) {
	h, r := g.admit(conn, remote)
	if r != nil {
		g.met.refused.WithLabelValues(r.Code).Inc()
		if g.logRate.allow("join "+remote.String(), g.now()) {
			g.log.Warn("join refused", "remote", remote, "peer", h, "reason", r.Reason)
		}
		g.mu.Lock()
		if len(g.refusals) < 256 {
			g.refusals[remote.String()] = Refusal{Addr: remote.String(), Reason: "join: " + r.Reason, When: g.now()}
		}
		g.mu.Unlock()
		writeFrame(conn, r)
	}
	drain(conn, min(time.Second, g.t.handshake))
}

// admit carries out one join exchange and returns the joiner's name.
func (g *Gossip) admit(conn *tls.Conn, remote netip.Addr) (string, *refuse) {
	no := func(format string, a ...any) *refuse { return &refuse{codeToken, fmt.Sprintf(format, a...)} }
	if !g.joinRate.Allow() {
		return "", &refuse{codeBusy, "too many join attempts: try again in a few seconds"}
	}
	h, err := expect[*joinHello](conn)
	if err != nil {
		return "", no("no request came: %v", err)
	}
	name := printable(h.Name)
	c := g.Cluster()
	switch {
	case h.Proto != protoVersion:
		return name, no("%s speaks version %d of the join protocol, the other side %d: upgrade the older one", g.o.Name, protoVersion, h.Proto)
	case c.ID == "":
		return name, no("%s belongs to no cluster yet", g.o.Name)
	case h.ClusterID != c.ID:
		return name, no("the token is for %s, %s belongs to %s", label("", printable(h.ClusterID)), g.o.Name, label(c.Name, c.ID))
	}
	tok, err := g.tokens.find(h.Code, g.now())
	if err != nil {
		return name, no("%s: %v", g.o.Name, err)
	}
	cs := conn.ConnectionState()
	exporter, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return name, no("bind to the connection: %v", err)
	}
	held := g.secrets.Load()
	i := slices.IndexFunc(held.accept, func(ca ed25519.PublicKey) bool { return sameKey(ca, tok.CA) })
	if i < 0 {
		return name, no("the token was made with a cluster secret that has been rotated away since: make a new one with `nodectl token`")
	}
	if err := writeFrame(conn, &challenge{CA: held.accept[i]}); err != nil {
		return name, no("connection lost")
	}
	p, err := expect[*proof](conn)
	if err != nil {
		return name, no("the joiner gave up: %v", err)
	}
	if !hmac.Equal(p.MAC, codeMAC(tok.Key, exporter, "joiner")) {
		return name, no("the token's code is wrong: copy the whole line that `nodectl token` printed")
	}
	by := name
	if id, _, err := peerID(cs); err == nil {
		by = fmt.Sprintf("%s (node %s, %s)", or(name, "unnamed"), id.Short(), remote)
	}
	if err := g.tokens.use(tok.ID, by, g.now()); err != nil {
		return name, no("%s: %v", g.o.Name, err)
	}
	err = writeFrame(conn, &grant{
		MAC: codeMAC(tok.Key, exporter, "issuer"), Secret: held.all()[i],
		ClusterID: c.ID, Cluster: c.Name, RingID: c.RingID, Seeds: g.seeds(),
		Primary: held.Primary, Next: held.Next, Previous: held.Previous,
	})
	if err != nil {
		return name, no("the secret could not be sent: %v: the token is used up, make a new one", err)
	}
	g.log.Info("node admitted with a join token", "peer", by)
	return name, nil
}
