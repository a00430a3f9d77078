package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// The first key of a block that is not a list of DNS zones. A zone of such a
// name is written with its dot: `service.`.
var reserved = []string{"node", "cluster", "network", "services", "service", "publish", "policy"}

// planned blocks are reserved for a later version.
const planned = "ingress"

// Parse reads a Nodefile. file names it in errors and is where relative
// imports start. What the Nodefile leaves out has its default. The error joins
// every fault found (each an *Error); the Config is nil then.
func Parse(file string, r io.Reader, env Env) (*Config, error) {
	data, err := read(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	p := newParser(file, env)
	x := &expander{env: p.env, faults: &p.faults, snippets: map[string][]token{}}
	p.faults.rank(file)
	x.expand(lex(file, data), []string{file})
	rd := &reader{toks: x.out, faults: &p.faults}
	for _, b := range rd.blocks() {
		p.block(b)
	}
	return p.finish()
}

// ParsePolicies reads a file that has policy blocks and nothing else. Its
// errors are those of Parse.
func ParsePolicies(file string, r io.Reader, env Env) ([]Policy, error) {
	data, err := read(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	p := newParser(file, env)
	x := &expander{env: p.env, faults: &p.faults, snippets: map[string][]token{}}
	p.faults.rank(file)
	x.expand(lex(file, data), []string{file})
	rd := &reader{toks: x.out, faults: &p.faults}
	for _, b := range rd.blocks() {
		if b.keys[0] != "policy" {
			p.faults.add(b.pos, b.name(), "not a policy, write `policy NAME[.NAMESPACE] { … }` only")
			continue
		}
		p.policy(b)
	}
	if err := p.faults.join(); err != nil {
		return nil, err
	}
	return p.cfg.Policies, nil
}

// Load is Parse of a file. A missing DefaultFile is a valid configuration:
// Default. Any other missing file is an error.
func Load(path string, env Env) (*Config, error) {
	data, err := env.filled().FS.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultFile:
		return newParser("", env).finish()
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: no such file, write one or leave the path out to use %s", path, DefaultFile)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return Parse(path, bytes.NewReader(data), env)
}

// Default is the configuration without a Nodefile: a single node with the
// network, service range and DNS server that the constants name. Routes of
// env are not looked at; Load does that.
func Default(env Env) *Config {
	p := newParser("", env)
	p.defaults()
	return &p.cfg
}

// parser builds a Config out of blocks.
type parser struct {
	env    Env
	faults faults
	cfg    Config
	seen   map[string]Pos // blocks and single-valued directives, by title
}

func newParser(file string, env Env) *parser {
	return &parser{env: env.filled(), cfg: Config{File: file}, seen: map[string]Pos{}}
}

func (p *parser) finish() (*Config, error) {
	p.defaults()
	p.check()
	err := p.faults.join()
	if p.env.CheckServers != nil {
		err = errors.Join(err, p.env.CheckServers(p.cfg.Servers))
	}
	if err != nil {
		return nil, err
	}
	return &p.cfg, nil
}

// once notes that title appears at pos; false, and a fault, when it has before.
// The fault's format takes the place where.
func (p *parser) once(pos Pos, block, title, format string) bool {
	old, dup := p.seen[title]
	if dup {
		p.faults.add(pos, block, format, old)
		return false
	}
	p.seen[title] = pos
	return true
}

// where is the place of a directive, for checks after parsing; of its block,
// when the value is a default.
func (p *parser) where(title, directive string, block Pos) Pos {
	if pos, ok := p.seen[title+" "+directive]; ok {
		return pos
	}
	if block.File == "" {
		block.File = p.cfg.File
	}
	return block
}

func (p *parser) block(b block) {
	if !slices.Contains(reserved, b.keys[0]) {
		p.server(b)
		return
	}
	switch b.keys[0] {
	case "node":
		p.node(b)
	case "cluster":
		p.cluster(b)
	case "network":
		p.network(b)
	case "services":
		p.services(b)
	case "service":
		p.service(b)
	case "publish":
		p.publish(b)
	case "policy":
		p.policy(b)
	}
}

// field is a directive of one of our own blocks.
type field struct {
	name     string
	usage    string // its arguments, for errors: "ADDR..."
	min, max int    // number of arguments; max < 0: any
	repeat   bool
	inner    []field // its own block, where it may have one
	set      func(d Directive) error
}

// fields sets the directives of a block. Errors of set become faults at the
// directive.
func (p *parser) fields(title string, body []Directive, known []field) {
	for _, d := range body {
		i := slices.IndexFunc(known, func(f field) bool { return f.name == d.Name })
		if i < 0 {
			switch {
			case slices.Contains(reserved, d.Name):
				p.faults.add(d.Pos, title, "%s begins a block of its own, add the missing } before it", d.Name)
			case len(known) == 0:
				p.faults.add(d.Pos, title, "unknown directive %s, this block has none", d.Name)
			default:
				p.faults.add(d.Pos, title, "unknown directive %s%s", d.Name, meant(d.Name, names(known)))
			}
			continue
		}
		f := known[i]
		usage := strings.TrimSpace(f.name + " " + f.usage)
		switch {
		case !f.repeat && !p.once(d.Pos, title, title+" "+f.name, f.name+" is already at %s, keep one"):
			continue
		case len(d.Args) < f.min || f.max >= 0 && len(d.Args) > f.max:
			p.faults.add(d.Pos, title, "%s with %s, write `%s`", f.name, counted(len(d.Args), "argument"), usage)
			continue
		case len(d.Block) > 0 && f.inner == nil:
			p.faults.add(d.Pos, title, "%s has no block of its own, write `%s`", f.name, usage)
			continue
		}
		if err := f.set(d); err != nil {
			p.faults.add(d.Pos, title, "%s %v", f.name, err)
		}
		if f.inner != nil {
			p.fields(title+" "+f.name, d.Block, f.inner)
		}
	}
}

func names(fields []field) []string {
	var ns []string
	for _, f := range fields {
		ns = append(ns, f.name)
	}
	return ns
}

func counted(n int, what string) string {
	switch n {
	case 0:
		return "no " + what
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// on is the set of a directive without arguments.
func on(v *bool) func(Directive) error {
	return func(Directive) error { *v = true; return nil }
}

// one is the set of a directive with one argument.
func one[T any](v *T, parse func(string) (T, error)) func(Directive) error {
	return func(d Directive) error {
		got, err := parse(d.Args[0])
		if err == nil {
			*v = got
		}
		return err
	}
}

// misspelt returns the reserved word that a block most likely means though
// its first key is not it. A zone may have any name, so the word alone proves
// nothing: its further keys are no zones, or its directives are that block's.
func misspelt(b block) string {
	word := Nearest(b.keys[0], reserved)
	if word == "" || strings.ContainsAny(b.keys[0], ".:/") {
		return ""
	}
	for _, k := range b.keys[1:] {
		if strings.Contains(k, "/") || zoneFault(k) != "" {
			return word
		}
	}
	own := directivesOf(word)
	for _, d := range b.body {
		if slices.Contains(own, d.Name) {
			return word
		}
	}
	return ""
}

// directivesOf returns the directive names of a reserved block.
func directivesOf(word string) []string {
	var scratch parser
	switch word {
	case "node":
		return names(scratch.nodeFields())
	case "cluster":
		return names(scratch.clusterFields())
	case "network":
		return names(scratch.networkFields("", &Network{}))
	case "services":
		return names(scratch.servicesFields())
	case "service":
		return names(scratch.serviceFields("", &Service{}))
	case "policy":
		return names(policyFields(&Policy{}))
	}
	return nil
}

// sortedKeys returns the keys of m in order.
func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
