package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"strings"
)

// address is a URL that a command needs. Everybody on the machine can read a program's arguments,
// so a URL with a password can come from a file or from the environment.
type address struct {
	name, example string // of the flag
	url, file     string
}

// addressFlag adds --name and --name-file. The help says that the URL is that of what.
func addressFlag(fs *flag.FlagSet, name, what, example string) *address {
	a := &address{name: name, example: example}
	fs.StringVar(&a.url, name, "", "the `URL` of "+what+"; by default that of --"+name+"-file, or of $"+a.variable())
	fs.StringVar(&a.file, name+"-file", "", "a `file` that holds the URL of "+what)
	return a
}

func (a *address) variable() string {
	if a.name == "url" {
		return "MILLRACE_URL"
	}
	return "MILLRACE_" + strings.ToUpper(a.name) + "_URL"
}

func (a *address) isGiven() bool { return a.url != "" || a.file != "" || os.Getenv(a.variable()) != "" }

// get returns the URL, or an error that says what to give.
func (a *address) get() (string, error) {
	if a.url != "" && a.file != "" {
		return "", fmt.Errorf("--%s and --%s-file are both given", a.name, a.name)
	}
	url := cmp.Or(a.url, os.Getenv(a.variable()))
	if a.file != "" {
		text, err := os.ReadFile(a.file)
		if err != nil {
			return "", fmt.Errorf("--%s-file: %w", a.name, err)
		}
		url = strings.TrimSpace(string(text))
	}
	if url == "" {
		return "", fmt.Errorf("--%s is missing, such as --%s %s; --%s-file FILE and $%s show no password to others", a.name, a.name, a.example, a.name, a.variable())
	}
	return url, nil
}
