//go:build tools

// Package tools names the programs of this group for the Go module resolver.
package tools

import (
	_ "github.com/rancher/local-path-provisioner"
)
