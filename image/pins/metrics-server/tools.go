//go:build tools

// Package tools names the programs of this group for the Go module resolver.
package tools

import (
	_ "sigs.k8s.io/metrics-server/cmd/metrics-server"
)
