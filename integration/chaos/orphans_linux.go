package main

import "syscall"

// dyingWithParent makes the kernel kill a child when this program dies, however that happens.
func dyingWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
