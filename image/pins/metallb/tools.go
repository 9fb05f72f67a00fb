//go:build tools

// Package tools names the programs of this group for the Go module resolver.
package tools

import (
	_ "go.universe.tf/metallb/controller"
	_ "go.universe.tf/metallb/speaker"
)
