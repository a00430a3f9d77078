package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"nodenet/lab"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

func TestMain(m *testing.M) {
	// The lab starts the program that it is part of: this one.
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	testscript.Main(m, map[string]func(){"nodectl": main})
}

// TestScripts runs nodectl itself as scripts do: arguments, exit status,
// standard output, standard error.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("NODENET_SOCKET", "")
			e.Setenv("HOSTNAME", "node1")
			// With the race detector every process that ends would wait a second.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Defer(func() {
				// A script that failed has left its lab up.
				if l, err := lab.Open(filepath.Join(e.WorkDir, "labs"), "nnt-cmd"); err == nil {
					if err := l.Down(context.Background()); err != nil {
						t.Error(err)
					}
				}
			})
			return os.Unsetenv("CNI_COMMAND")
		},
	})
}
