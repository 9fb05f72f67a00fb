//go:build tools

// Package tools names no program: of this module only files are used.
package tools
