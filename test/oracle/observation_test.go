package oracle

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/test/world"
)

// bodyMax is the length up to which a body is compared, and shown, as it is.
const bodyMax = 400

// observation is what came of a request, as named fields: of the answer, and with b0., b1. … of what the backends saw.
type observation map[string]string

func (o observation) set(field, value string) { o[field] = value }

func (o observation) add(field, value string) {
	if had, ok := o[field]; ok {
		value = had + " | " + value
	}
	o[field] = value
}

// clientHello is how TLS begins, which a backend may be sent as it is.
const clientHello = "\x16\x03"

// volatile are header fields whose values differ from request to request; that they are there is compared all the same.
func volatile(name string) bool {
	switch name {
	case "date", "x-request-id", "x-envoy-upstream-service-time", "traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid":
		return true
	}
	return false
}

// ofMesh is what differs from mesh to mesh: a certificate, and its fingerprint, in x-forwarded-client-cert.
var ofMesh = regexp.MustCompile(`(Hash|Cert)=("-----BEGIN[^"]*"|[0-9a-f]{64})`)

func (o observation) headers(prefix string, h http.Header) {
	for name, values := range h {
		name = strings.ToLower(name)
		value := strings.Join(values, " | ")
		if volatile(name) {
			value = "*"
		}
		if name == "set-cookie" {
			value = cookieValue.ReplaceAllString(value, `$1="*"`)
		}
		o.set(prefix+name, ofMesh.ReplaceAllString(value, "$1=*"))
	}
}

// cookieValue finds the values that proxies make up.
var cookieValue = regexp.MustCompile(`(made-up)="?[0-9a-f]+"?`)

func (o observation) response(res *http.Response) {
	o.set("status", strconv.Itoa(res.StatusCode))
	o.headers("header:", res.Header)
	o.headers("trailer:", res.Trailer)
}

// records notes what backends saw, in an order that does not depend on who was faster.
func (o observation) records(list []world.Record) {
	slices.SortStableFunc(list, func(a, b world.Record) int {
		return cmp.Or(cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(a.Backend, b.Backend))
	})
	o.set("received", strconv.Itoa(len(list)))
	for i, r := range list {
		b := "b" + strconv.Itoa(i) + "."
		o.set(b+"name", r.Backend)
		o.set(b+"from", r.From.Addr().String())
		o.set(b+"request", r.Proto+" "+r.Method+" "+r.Target)
		o.set(b+"host", r.Host)
		o.headers(b+"header:", r.Header)
		o.headers(b+"trailer:", r.Trailer)
		o.set(b+"body", brief([]byte(r.Body)))
		if strings.HasPrefix(r.Body, clientHello) {
			o.set(b+"body", "a ClientHello")
		}
		if r.BodyError != "" {
			o.set(b+"body-error", "yes") // as what it appears depends on the moment
		}
	}
}

// brief is a body, or if it is long its length and hash.
func brief(b []byte) string {
	if len(b) <= bodyMax {
		return string(b)
	}
	return fmt.Sprintf("%d bytes, sha256 %x", len(b), sha256.Sum256(b))
}

// absent is shown of a field that an observation has not.
const absent = "absent"

// mismatch is a field in which two observations differ, and what they say: quoted, or absent.
type mismatch struct{ field, envoy, lateen string }

// decisive are the fields that the others follow from: where one of them differs, only these are compared.
func decisive(field string) bool {
	return field == "status" || field == "error" || field == "received" || field == "proto"
}

// refuses tells of reasons of answers that are ours in their text, too; the user orders that of the others.
func refuses(reason string) bool {
	why, known := telemetry.ParseReason(reason)
	return known && why != telemetry.DirectResponse && why != telemetry.Redirect && why != telemetry.FaultAbort
}

// compare lists them, those of our refusals' own texts and connections under names that begin with refusal. Counts may
// differ by within. What follows from another difference is left out.
func compare(envoy, lateen observation, within int) []mismatch {
	all := everyMismatch(envoy, lateen, within)
	has := func(f func(string) bool) bool {
		return slices.ContainsFunc(all, func(m mismatch) bool { return f(m.field) })
	}
	if reason := lateen["header:x-lateen-reason"]; refuses(reason) {
		for i := range all {
			if f := all[i].field; f == "body" || f == "closed" || f == "header:grpc-message" {
				all[i].field = "refusal:" + f
			}
		}
	}
	otherwise, body := has(decisive), has(func(f string) bool { return strings.HasSuffix(f, "body") })
	return slices.DeleteFunc(all, func(m mismatch) bool {
		follows := m.field == "header:content-length" || m.field == "header:content-type"
		return otherwise && !decisive(m.field) || body && follows
	})
}

func everyMismatch(envoy, lateen observation, within int) []mismatch {
	var out []mismatch
	fields := slices.Sorted(maps.Keys(envoy))
	for f := range lateen {
		if _, both := envoy[f]; !both {
			fields = append(fields, f)
		}
	}
	slices.Sort(fields)
	show := func(o observation, f string) string {
		if v, ok := o[f]; ok {
			return strconv.Quote(v)
		}
		return absent
	}
	for _, f := range fields {
		a, b := show(envoy, f), show(lateen, f)
		if a == b || strings.HasPrefix(f, "count:") && near(envoy[f], lateen[f], within) || strings.HasPrefix(f, "received:") && near(envoy[f], lateen[f], within) {
			continue
		}
		out = append(out, mismatch{f, a, b})
	}
	return out
}

func near(a, b string, within int) bool {
	x, _ := strconv.Atoi(a) // absent is 0
	y, _ := strconv.Atoi(b)
	return max(x, y)-min(x, y) <= within
}
