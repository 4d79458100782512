package control

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// serveMetrics answers with the control plane's own metrics, in Prometheus' text format, by the names that istiod has for
// the same.
func (c *Control) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	metric := func(name, kind, help string, value any) {
		base, _, _ := strings.Cut(name, "{")
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", base, help, base, kind, name, value)
	}
	clients, types, refused := 0, 0, 0
	for _, s := range c.xds.Clients() {
		if !s.Until.IsZero() {
			continue
		}
		clients++
		for _, t := range s.Types {
			types++
			if t.NackMessage != "" {
				refused++
			}
		}
	}
	stats, snap := c.cache.Stats(), c.cache.Snapshot()
	metric(fmt.Sprintf("pilot_info{version=%q}", version()), "gauge", "The program.", 1)
	metric(fmt.Sprintf("pilot_xds{version=%q}", version()), "gauge", "Clients that are connected.", clients)
	metric("lateen_objects", "gauge", "Objects in the picture of the mesh.", snap.Len())
	metric("lateen_xds_subscriptions", "gauge", "Types of resources that clients subscribe to, over all clients.", types)
	metric("lateen_xds_refused", "gauge", "Of these, those whose last answer the client has refused.", refused)
	metric("lateen_compiled_total", "counter", "Resources that were compiled.", stats.Compiled)
	metric("lateen_faults", "gauge", "Objects that are not in force as they are written.", len(c.store.Status().Faults))
	counts := c.service.Counts()
	metric("citadel_server_csr_count", "counter", "Requests for a certificate.", counts.Asked)
	metric("citadel_server_success_cert_issuance_count", "counter", "Certificates that were issued.", counts.Issued)
	metric("citadel_server_authentication_failure_count", "counter", "Requests whose caller did not prove who it is.", counts.Unproven)
	metric("citadel_server_csr_parsing_err_count", "counter", "Requests that could not be read.", counts.Unread)
	metric("citadel_server_csr_sign_err_count", "counter", "Requests that could not be signed.", counts.Unsigned)
	signs := c.authority.Expires()
	roots := signs
	for _, r := range c.authority.Bundle().Roots(c.authority.TrustDomain()) {
		if r.NotAfter.Before(roots) {
			roots = r.NotAfter
		}
	}
	metric("citadel_server_cert_chain_expiry_timestamp", "gauge", "When the certificate that signs ends, as Unix time.", signs.Unix())
	metric("citadel_server_root_cert_expiry_timestamp", "gauge", "When the first of the roots ends, as Unix time.", roots.Unix())
	metric("process_start_time_seconds", "gauge", "When the program was started, as Unix time.", float64(c.started.UnixNano())/float64(time.Second))
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write([]byte(b.String()))
}
