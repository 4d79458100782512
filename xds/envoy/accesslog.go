package envoy

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lateen-mesh/lateen/plan"
)

const fileLogger = "envoy.access_loggers.file"

// textFormat is the line that Istio writes.
const textFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% ` +
	`%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" ` +
	`"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% ` +
	`%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// jsonFormat is the object that Istio writes.
var jsonFormat = map[string]string{
	"start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%",
	"path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%",
	"response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
	"connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%", "bytes_received": "%BYTES_RECEIVED%",
	"bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%", "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"x_forwarded_for": "%REQ(X-FORWARDED-FOR)%", "user_agent": "%REQ(USER-AGENT)%", "request_id": "%REQ(X-REQUEST-ID)%",
	"authority": "%REQ(:AUTHORITY)%", "upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
	"upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "requested_server_name": "%REQUESTED_SERVER_NAME%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}

func accessLogs(list []plan.AccessLog) []*accesslog.AccessLog {
	var out []*accesslog.AccessLog
	for i := range list {
		out = append(out, accessLog(&list[i]))
	}
	return out
}

func accessLog(l *plan.AccessLog) *accesslog.AccessLog {
	f := &core.SubstitutionFormatString{}
	if l.JSON {
		labels := l.Labels
		if len(labels) == 0 {
			labels = jsonFormat
		}
		s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for k, v := range labels {
			s.Fields[k] = structpb.NewStringValue(v)
		}
		f.Format = &core.SubstitutionFormatString_JsonFormat{JsonFormat: s}
	} else {
		format := l.Format
		if format == "" {
			format = textFormat
		}
		f.Format = &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: inlineText(format)}
	}
	return &accesslog.AccessLog{
		Name: fileLogger, Filter: logFilter(l),
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: pack(&filelog.FileAccessLog{
			Path: l.Path, AccessLogFormat: &filelog.FileAccessLog_LogFormat{LogFormat: f},
		})},
	}
}

// logFilter is nil if everything is logged.
func logFilter(l *plan.AccessLog) *accesslog.AccessLogFilter {
	var all []*accesslog.AccessLogFilter
	if l.MinStatus > 0 {
		all = append(all, statusAtLeast(l.MinStatus))
	}
	if l.ErrorsOnly {
		all = append(all, &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_OrFilter{
			OrFilter: &accesslog.OrFilter{Filters: []*accesslog.AccessLogFilter{
				{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{ResponseFlagFilter: &accesslog.ResponseFlagFilter{}}},
				statusAtLeast(serverError),
			}},
		}})
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	default:
		return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_AndFilter{AndFilter: &accesslog.AndFilter{Filters: all}}}
	}
}

// serverError is the first status code that tells of a failed request.
const serverError = 500

func statusAtLeast(code int) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslog.StatusCodeFilter{Comparison: &accesslog.ComparisonFilter{
			Op: accesslog.ComparisonFilter_GE, Value: &core.RuntimeUInt32{DefaultValue: uint32(code), RuntimeKey: "access_log.min_status"},
		}},
	}}
}
