package host

import (
	"errors"
	"log/slog"
	"os"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/accelerate"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// The states of a shortcut that a proxy knows too (proxy.Config.Accelerator).
const (
	shortcutOn          = "on"
	shortcutOff         = "off"
	shortcutUnavailable = "unavailable: "
)

// shortcut is the host's accelerator, or the reason why there is none. Without one its methods do nothing.
type shortcut struct {
	state       string
	log         *slog.Logger
	accelerator *accelerate.Accelerator
}

// open attaches the accelerator if it is wanted. That it cannot be had is no fault of the mesh: the state says why.
func (s *shortcut) open(wanted bool, log *slog.Logger) {
	s.state, s.log = shortcutOff, log
	if !wanted {
		return
	}
	a, err := accelerate.New(accelerate.Config{
		Ports: []uint16{redirect.OutboundPort, redirect.InboundPort}, Mark: redirect.ProxyMark, Mask: redirect.ProxyMask,
	})
	if err != nil {
		s.state = shortcutUnavailable + err.Error()
		log.Warn("bytes between workloads and their proxies take the long way", "cause", err)
		return
	}
	s.accelerator, s.state = a, shortcutOn
}

// admit has the connections of a workload's network namespace shortened, until its cookie is dismissed.
func (s *shortcut) admit(ns *os.File) (cookie uint64, err error) {
	if s.accelerator == nil {
		return 0, nil
	}
	err = netns.Do(ns, func() (err error) {
		cookie, err = accelerate.Namespace()
		return err
	})
	return cookie, errors.Join(err, s.accelerator.Admit(cookie))
}

func (s *shortcut) dismiss(cookie uint64) {
	if s.accelerator == nil || cookie == 0 {
		return
	}
	if err := s.accelerator.Dismiss(cookie); err != nil {
		s.log.Warn("the accelerator keeps a namespace that has gone", "cause", err)
	}
}

// close detaches the accelerator.
func (s *shortcut) close() {
	if s.accelerator == nil {
		return
	}
	if err := s.accelerator.Close(); err != nil {
		s.log.Warn("detach the accelerator", "cause", err)
	}
}
