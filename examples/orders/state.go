package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// State lets a run go on after it was stopped. It is right only if the handlers had drained when it
// was written: then the books hold exactly the orders that the groups have settled.
type State struct {
	Run       string // names the run's topics
	Orders    int    // how many the run has
	Published int    // how many of them are known to be published
	Clean     bool   // written after a drain; false while a run is under way
	Books     *Books
}

// statePath is the file of a bus; the name does not give the URL away.
func statePath(dir, url string) string {
	return filepath.Join(dir, fmt.Sprintf("%x.json", sha256.Sum256([]byte(url)))[:20]+".json")
}

// loadState returns nil if there is no run to go on with; why says so if there was one.
func loadState(path string, orders int) (s *State, why string, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	s = &State{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, "", fmt.Errorf("state file %s: %w; remove it to start afresh", path, err)
	}
	switch {
	case !s.Clean:
		return nil, "the last run did not end cleanly, so what it had added up is lost; starting afresh", nil
	case s.Orders != orders:
		return nil, fmt.Sprintf("the last run was of %d orders; starting afresh", s.Orders), nil
	}
	return s, "", nil
}

// save replaces the file as a whole, so that a crash leaves the old one or the new one.
func (s *State) save(path string) error {
	s.Books.mu.Lock()
	data, err := json.Marshal(s)
	s.Books.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
