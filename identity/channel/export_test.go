package channel

import (
	"context"
	"net"
)

// SetConnect makes the channel reach its addresses in another way than TCP.
func (c *Channel) SetConnect(connect func(ctx context.Context, network, address string) (net.Conn, error)) {
	c.connect = connect
}
