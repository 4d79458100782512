package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// serving is HealthCheckResponse.ServingStatus SERVING (grpc.health.v1).
const serving = 1

// check asks by gRPC's health protocol. The proxy must not link gRPC for its memory's sake, and the messages have one
// field each.
func (h *Handler) check(ctx context.Context, p *GRPC) error {
	message := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), p.Service)
	if p.Service == "" {
		message = nil
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.at(p.Port)+"/grpc.health.v1.Health/Check",
		bytes.NewReader(append(frame, message...)))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("User-Agent", "kube-probe/lateen")
	answer, err := h.grpc.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, bodyMax))
	if err != nil {
		return err
	}
	status := answer.Trailer.Get("Grpc-Status")
	if status == "" {
		status = answer.Header.Get("Grpc-Status")
	}
	if answer.StatusCode != http.StatusOK || status != "0" {
		return fmt.Errorf("gRPC status %q (%s), HTTP status %d", status, answer.Trailer.Get("Grpc-Message")+answer.Header.Get("Grpc-Message"), answer.StatusCode)
	}
	got, err := readHealth(body)
	if err != nil {
		return err
	}
	if got != serving {
		return errors.New("gRPC health: it says that it does not serve (status " + strconv.FormatUint(got, 10) + ")")
	}
	return nil
}

// readHealth reads the status of a framed HealthCheckResponse.
func readHealth(body []byte) (status uint64, err error) {
	const head = 5 // compressed or not, length
	if len(body) < head || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-head) {
		return 0, errors.New("gRPC health: the answer is not one uncompressed message")
	}
	for rest := body[head:]; len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return 0, fmt.Errorf("gRPC health: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
		if number == 1 && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(rest)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, rest)
		}
		if n < 0 {
			return 0, fmt.Errorf("gRPC health: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
	}
	return status, nil
}
