// Package only lets a package offer functions to this module alone.
package only

// Module is the argument of functions that only this module can call: no other module can name the
// type.
type Module struct{}
