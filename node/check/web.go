package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// http makes one GET on a connection of its own. Redirects are answers, not
// followed: where they lead is not this backend.
func (p Probe) http(ctx context.Context) error {
	path, query, err := splitPath(cmp.Or(p.Path, "/"))
	if err != nil {
		return err
	}
	at := url.URL{Scheme: p.Type, Host: net.JoinHostPort(p.host(), strconv.Itoa(int(p.Addr.Port()))), Path: path, RawQuery: query}
	shown := at
	shown.Host = p.Addr.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return fmt.Errorf("GET %s: %w", &shown, err)
	}
	if p.Host != "" {
		req.Host = p.Host
	}
	req.Header.Set("User-Agent", "nodenet-check")
	t := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr.String())
		},
		// A check asks whether the backend works, not who it is: it goes to an
		// address of ours, and certificates are made out to other names.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: p.Host},
	}
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("GET %s: %w", &shown, reason(ctx, err))
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: status %d", &shown, resp.StatusCode)
	}
	return nil
}

func splitPath(s string) (path, query string, err error) {
	u, err := url.ParseRequestURI(s)
	if err != nil {
		return "", "", fmt.Errorf("path %s: %w", s, err)
	}
	return u.Path, u.RawQuery, nil
}
