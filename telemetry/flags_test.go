package telemetry

import (
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	tests := []struct {
		flags       Flags
		short, long string
	}{
		{0, "-", "-"},
		{FlagUF, "UF", "UpstreamConnectionFailure"},
		{FlagURX | FlagUF, "UF,URX", "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"},
		{FlagDI | FlagDC, "DI,DC", "DelayInjected,DownstreamConnectionTermination"},
		{FlagUDO, "UDO", "UnconditionalDropOverload"},
		{FlagUAEX | FlagNFCF | FlagUMSDR, "UAEX,UMSDR,NFCF", "UnauthorizedExternalService,UpstreamMaxStreamDurationReached,NoFilterConfigFound"},
	}
	for _, tt := range tests {
		if got := tt.flags.String(); got != tt.short {
			t.Errorf("short: got %q, want %q", got, tt.short)
		}
		if got := string(tt.flags.AppendLong(nil)); got != tt.long {
			t.Errorf("long: got %q, want %q", got, tt.long)
		}
	}
	if all := Flags(1<<len(flagNames) - 1).String(); strings.Count(all, ",") != len(flagNames)-1 || !strings.HasPrefix(all, "LH,UH,UT,LR,UR,UF") {
		t.Errorf("all flags: %s", all)
	}
	if FlagUDO != 1<<(len(flagNames)-1) {
		t.Error("flagNames and the constants have different lengths")
	}
	buf := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() { _ = (FlagUF | FlagURX).Append(buf) }); n != 0 {
		t.Errorf("Append allocates %v times, want 0", n)
	}
}
