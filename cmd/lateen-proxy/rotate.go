package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// onRotation calls reopen at each SIGUSR1, with which log rotation says that it has moved the files, until stop is called.
func onRotation(reopen func()) (stop func()) {
	ended := make(chan struct{})
	rotated := make(chan os.Signal, 1)
	signal.Notify(rotated, syscall.SIGUSR1)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-rotated:
				reopen()
			case <-ended:
				return
			}
		}
	})
	return func() {
		signal.Stop(rotated)
		close(ended)
		group.Wait()
	}
}
