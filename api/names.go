package api

import (
	"context"
	"net/http"
	"net/url"
)

// PathNames lists, adds (POST Name → Name) and removes (DELETE ?key=KEY)
// static DNS records.
const PathNames = "/v1/names" // []Name

// Name is a static DNS record, served by every node.
type Name struct {
	Key    string `json:"key,omitempty"` // as RemoveName wants it; set in answers
	Name   string `json:"name"`          // absolute, without the final dot
	Type   string `json:"type"`          // A, AAAA or CNAME
	Target string `json:"target"`        // an address, or a name without the final dot
}

// Names returns the static DNS records of the cluster.
func (c *Client) Names(ctx context.Context) ([]Name, error) { return get[[]Name](ctx, c, PathNames) }

// AddName adds a static DNS record. A name may have several A and AAAA
// records, but only one CNAME and nothing beside it (RFC 1034 §3.6.2).
func (c *Client) AddName(ctx context.Context, n Name) (Name, error) {
	return post[Name](ctx, c, PathNames, n)
}

// RemoveName removes the record with a Key, or every record of a name.
func (c *Client) RemoveName(ctx context.Context, key string) error {
	return c.do(ctx, http.MethodDelete, PathNames+"?key="+url.QueryEscape(key), nil, nil)
}
