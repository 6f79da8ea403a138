//go:build !linux

package main

import "syscall"

// dyingWithParent is left to the context that a child is started with.
func dyingWithParent() *syscall.SysProcAttr { return nil }
