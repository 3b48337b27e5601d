{{/* Environment of the server's container. */}}
{{- define "bmt.serverEnv" -}}
{{- include "bmt.registryEnv" . | trim }}
{{- with include "bmt.adminSecret" . }}
- name: BMT_ADMIN_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: admin-key
{{- end }}
{{ include "bmt.hubEnv" . | trim }}
{{- include "bmt.caEnv" . }}
# The root file system is read-only, so all of these folders are in volumes.
- name: HOME
  value: /scratch
- name: HF_HOME
  value: /models
- name: BMT_DATA_DIR
  value: /scratch/bmt
- name: VLLM_CACHE_ROOT
  value: /scratch/vllm
- name: TORCHINDUCTOR_CACHE_DIR
  value: /scratch/inductor
- name: TRITON_CACHE_DIR
  value: /scratch/triton
- name: VLLM_NO_USAGE_STATS
  value: "1"
{{- if .Values.tracing.endpoint }}
- name: OTEL_SERVICE_NAME
  value: {{ include "bmt.name" . }}
- name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
  value: {{ .Values.tracing.protocol }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .Values.tracing.share | quote }}
{{- end }}
{{- end -}}

{{/* Path at the edge, if it is not one of the server's own paths. The server answers without it too, so the edge may strip it. */}}
{{- define "bmt.rootPath" -}}
{{- $edge := ternary .Values.ingress.path (ternary .Values.httpRoute.path "/" .Values.httpRoute.enabled) .Values.ingress.enabled -}}
{{- $path := trimSuffix "/" $edge -}}
{{- $own := list "" "v1" "livez" "readyz" "health" "ping" "version" "metrics" "tokenize" "detokenize" -}}
{{- if not (has (index (splitList "/" (trimPrefix "/" $path)) 0) $own) }}{{ $path }}{{ end -}}
{{- end -}}
