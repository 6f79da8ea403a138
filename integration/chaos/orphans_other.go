//go:build !linux

package main

import "syscall"

// dyingWithParent does nothing: only the context ends the children.
func dyingWithParent() *syscall.SysProcAttr { return nil }
