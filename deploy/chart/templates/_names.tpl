{{- /* revision is the revision's name. */}}
{{- define "lateen.revision" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{- /* suffix ends the names of what each revision has for itself; the default one's have none. */}}
{{- define "lateen.suffix" -}}
{{ if ne (include "lateen.revision" .) "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{- /* name is that of the control plane. */}}
{{- define "lateen.name" -}}
lateend{{ include "lateen.suffix" . }}
{{- end }}

{{- /* labels are on every object; by the last one an installation is found. */}}
{{- define "lateen.labels" -}}
app.kubernetes.io/part-of: lateen
istio.io/rev: {{ include "lateen.revision" . | quote }}
lateen.dev/installation: {{ include "lateen.revision" . | quote }}
{{- end }}

{{- /* selector finds the pods of the control plane. */}}
{{- define "lateen.selector" -}}
app: lateend
istio.io/rev: {{ include "lateen.revision" . | quote }}
{{- end }}

{{- /* image takes the name of one of our images: dict "root" $ "name" NAME. */}}
{{- define "lateen.image" -}}
{{ .root.Values.hub }}/{{ .name }}:{{ .root.Values.tag }}
{{- end }}

{{- /* injection is the configuration of injection: what the chart knows, and what the values say of it. */}}
{{- define "lateen.injection" -}}
{{- $own := dict
  "revision" (include "lateen.revision" .)
  "proxyImage" (include "lateen.image" (dict "root" . "name" "lateen-proxy"))
  "initImage" (include "lateen.image" (dict "root" . "name" "lateen-cni"))
  "discoveryAddress" (printf "%s.%s.svc:15012" (include "lateen.name" .) .Release.Namespace)
  "trustDomain" .Values.meshConfig.trustDomain
  "clusterID" .Values.clusterName }}
{{- if .Values.cni.enabled }}{{ $_ := set $own "cni" true }}{{ end }}
{{- if .Values.network }}{{ $_ := set $own "network" .Values.network }}{{ end }}
{{- if .Values.imagePullPolicy }}{{ $_ := set $own "imagePullPolicy" .Values.imagePullPolicy }}{{ end }}
{{- if .Values.imagePullSecrets }}{{ $_ := set $own "imagePullSecrets" .Values.imagePullSecrets }}{{ end }}
{{- mustMergeOverwrite $own .Values.injection.config | toYaml }}
{{- end }}
