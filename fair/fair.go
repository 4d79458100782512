// Package fair keeps a caller, whom nobody has proven yet, from taking what is there for all.
//
// In: who comes, by address. Out: when they may pass, or who has to give way to them. A [Line] lets honest crowds wait
// for their turn; a [Crowd] lets nobody wait, for what a caller can hold for as long as it likes. The package must not
// know what is shared. All methods may be called concurrently.
package fair

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Address is the part of a remote address, such as 10.0.0.1:4711, by which callers are told apart.
func Address(remote string) string {
	if a, err := netip.ParseAddrPort(remote); err == nil {
		return a.Addr().Unmap().String()
	}
	return remote
}

// Line lets a bounded number pass at a time, and so many from one address; the others wait. Whoever comes from one
// address waits for the others from there, and only so many of them wait for those from elsewhere.
type Line struct {
	all           chan struct{} // nil: no bound but that of each address
	each, waiting int

	mu    sync.Mutex
	files map[string]*file // by address
}

// file is where those from one address stand behind one another.
type file struct {
	room  chan struct{}
	users int // who waits or has passed
}

// NewLine lets all pass at a time (0: any number) and each of them from one address, from which so many more may wait.
func NewLine(all, each, waiting int) *Line {
	l := &Line{each: each, waiting: waiting, files: map[string]*file{}}
	if all > 0 {
		l.all = make(chan struct{}, all)
	}
	return l
}

// Enter waits until somebody from an address may pass, who calls leave behind what the line is for. The error is that
// of ctx, or says that too many from there wait.
func (l *Line) Enter(ctx context.Context, from string) (leave func(), err error) {
	l.mu.Lock()
	f := l.files[from]
	if f == nil {
		f = &file{room: make(chan struct{}, l.each)}
		l.files[from] = f
	}
	if f.users >= l.each+l.waiting {
		l.mu.Unlock()
		return nil, fmt.Errorf("%d requests from %s wait already; try again later", l.waiting, from)
	}
	f.users++
	l.mu.Unlock()
	forget := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if f.users--; f.users == 0 {
			delete(l.files, from)
		}
	}
	select {
	case f.room <- struct{}{}:
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
	if l.all == nil {
		return func() { <-f.room; forget() }, nil
	}
	select {
	case l.all <- struct{}{}:
	case <-ctx.Done():
		<-f.room
		forget()
		return nil, context.Cause(ctx)
	}
	return func() { <-l.all; <-f.room; forget() }, nil
}

// Len is how many have passed or wait.
func (l *Line) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, f := range l.files {
		n += f.users
	}
	return n
}

// Crowd holds a bounded number. Whoever comes to a full one is let in, and who was there first, of those from the
// address that has most there, has to go: a caller that takes all there is takes it from itself.
type Crowd struct {
	most int

	mu sync.Mutex
	in []*member // in the order in which they came
}

type member struct {
	from string
	end  func()
}

// NewCrowd holds so many.
func NewCrowd(most int) *Crowd { return &Crowd{most: most} }

// Enter lets somebody from an address in, who calls leave at the end, once or more often. end is called, at most once and
// never after leave has returned, if they have to go; it must be quick, and call nothing of the Crowd.
func (c *Crowd) Enter(from string, end func()) (leave func()) {
	m := &member{from: from, end: end}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.in) >= c.most {
		c.drop()
	}
	c.in = append(c.in, m)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if i := slices.Index(c.in, m); i >= 0 {
			c.in = slices.Delete(c.in, i, i+1)
		}
	}
}

// drop has one go; the caller holds mu.
func (c *Crowd) drop() {
	count := map[string]int{}
	most := 0
	for _, m := range c.in {
		count[m.from]++
		most = max(most, count[m.from])
	}
	i := slices.IndexFunc(c.in, func(m *member) bool { return count[m.from] == most })
	c.in[i].end()
	c.in = slices.Delete(c.in, i, i+1)
}

// Len is how many are there.
func (c *Crowd) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.in)
}
