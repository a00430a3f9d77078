package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"nodenet/api"
)

// Error codes of the CNI specification, section 5, and our own from 100 up.
const (
	codeVersion     = 1   // incompatible CNI version
	codeUnsupported = 2   // unsupported field
	codeUnknown     = 3   // container unknown
	codeEnvironment = 4   // invalid environment variable
	codeIO          = 5   // cannot read the configuration
	codeDecode      = 6   // the configuration is not JSON of the right form
	codeConfig      = 7   // invalid configuration
	codeSameNetns   = 8   // the container's namespace is the host's
	codeRetry       = 11  // try again later
	codeUnavailable = 50  // STATUS: no ADD would succeed
	codeExhausted   = 100 // no address left
	codeDiffers     = 101 // CHECK: the kernel differs
	codeExists      = 102 // the attachment or the address is in use
	codeInternal    = 999
)

// fault is an error with its CNI code.
type fault struct {
	code    int
	msg     string
	details string
}

func (f *fault) Error() string {
	if f.details == "" {
		return f.msg
	}
	return f.msg + ": " + f.details
}

func faultf(code int, format string, args ...any) *fault {
	return &fault{code: code, msg: fmt.Sprintf(format, args...)}
}

// errorResult is the JSON form of an error.
type errorResult struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// report gives an error the form that the runtime expects, in its version.
func (p *plugin) report(err error) errorResult {
	v := p.version
	if v == "" {
		v = latest
	}
	var f *fault
	if errors.As(err, &f) {
		return errorResult{CNIVersion: v, Code: f.code, Msg: f.msg, Details: f.details}
	}
	return errorResult{CNIVersion: v, Code: codeInternal, Msg: err.Error()}
}

// daemonFault turns what the daemon answered into a CNI error.
func daemonFault(what string, err error) error {
	if err == nil {
		return nil
	}
	f := &fault{msg: what, details: err.Error()}
	var ae *api.Error
	var ue *api.UnreachableError
	switch {
	case errors.As(err, &ue):
		f.code = codeRetry // it says itself what to do
	case errors.Is(err, context.DeadlineExceeded):
		f.code, f.details = codeRetry, "the daemon did not answer in time: see `nodectl status`"
	case !errors.As(err, &ae):
		// No proper answer: the daemon went away, or is another version.
		f.code = codeRetry
		f.details += "; see `nodectl status`"
	case ae.Code == api.CodeInvalid, ae.Code == api.CodeReadOnly:
		f.code = codeConfig
	case ae.Code == api.CodeNotFound:
		f.code = codeConfig
	case ae.Code == api.CodeNotReady:
		f.code = codeRetry
	case ae.Code == api.CodeExhausted:
		f.code = codeExhausted
	case ae.Code == api.CodeDiffers:
		f.code = codeDiffers
	case ae.Code == api.CodeExists:
		f.code = codeExists
	default:
		f.code = codeInternal
	}
	return f
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
