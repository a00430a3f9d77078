package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Error is one fault of a Nodefile. Parse joins all of them with errors.Join,
// in the order of the file; errors.As finds the first.
type Error struct {
	Pos   Pos    // Line 0: in a part that the Nodefile leaves to its default
	Block string // e.g. "service web.default"; "" outside of any block
	Text  string // what is wrong and what to write in its place
}

// Error returns "file:line: block: what, fix".
func (e *Error) Error() string {
	s := e.Pos.String()
	if s != "" {
		s += ": "
	}
	if e.Block != "" {
		s += e.Block + ": "
	}
	return s + e.Text
}

// String returns "file:line", less whatever is not known.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// maxErrors bounds the report: beyond this many nobody reads on.
const maxErrors = 200

// faults collects what is wrong, each fault once.
type faults struct {
	list  []*Error
	seen  map[Error]bool
	files map[string]int // rank of a file: imported ones follow the first
}

func (f *faults) add(pos Pos, block, format string, args ...any) {
	e := Error{Pos: pos, Block: block, Text: fmt.Sprintf(format, args...)}
	if f.seen[e] || len(f.list) > maxErrors || strings.Contains(e.Block+e.Text, unset) {
		return
	}
	if f.seen == nil {
		f.seen, f.files = map[Error]bool{}, map[string]int{}
	}
	if len(f.list) == maxErrors {
		e = Error{Pos: pos, Text: "and more: fix these first"}
	}
	f.seen[e] = true
	f.rank(pos.File)
	f.list = append(f.list, &e)
}

// rank gives file its place among the files of the report.
func (f *faults) rank(file string) int {
	if f.files == nil {
		f.seen, f.files = map[Error]bool{}, map[string]int{}
	}
	n, ok := f.files[file]
	if !ok {
		n = len(f.files)
		f.files[file] = n
	}
	return n
}

// join returns everything collected, or nil.
func (f *faults) join() error {
	slices.SortStableFunc(f.list, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(f.files[a.Pos.File], f.files[b.Pos.File]), cmp.Compare(a.Pos.Line, b.Pos.Line))
	})
	errs := make([]error, len(f.list))
	for i, e := range f.list {
		errs[i] = e
	}
	return errors.Join(errs...)
}
