package main

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestRotation: SIGUSR1 does not end the process but has the logs opened anew.
func TestRotation(t *testing.T) {
	called := make(chan struct{}, 1)
	stop := onRotation(func() { called <- struct{}{} })
	defer stop()
	for range 2 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		select {
		case <-called:
		case <-time.After(10 * time.Second):
			t.Fatal("SIGUSR1 has no effect")
		}
	}
}
