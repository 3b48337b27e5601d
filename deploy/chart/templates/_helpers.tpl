{{- define "bmt.name" -}}
{{- default (printf "%s" .Release.Name) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "bmt.selector" -}}
app.kubernetes.io/name: bmt-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bmt.labels" -}}
{{ include "bmt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "bmt.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "bmt.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: required if serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "bmt.image" -}}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-cpu" "" (eq .Values.accelerator "cpu"))) .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* Environment variables with the registry's URL. */}}
{{- define "bmt.registryEnv" -}}
{{- if .Values.valkey.enabled }}
- name: VALKEY_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ default (printf "%s-valkey" (include "bmt.name" .)) .Values.valkey.existingSecret }}
      key: password
- name: BMT_REGISTRY
  value: redis://:$(VALKEY_PASSWORD)@{{ include "bmt.name" . }}-valkey:6379/0
{{- else if .Values.registry.existingSecret }}
- name: BMT_REGISTRY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.registry.existingSecret }}
      key: {{ .Values.registry.secretKey }}
{{- else }}
- name: BMT_REGISTRY
  value: {{ required "registry: set registry.url, registry.existingSecret or valkey.enabled" .Values.registry.url | quote }}
{{- end }}
{{- end -}}

{{/* Security context of a container, for the restricted Pod Security Standard. */}}
{{- define "bmt.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Security context of a pod; the argument is the user id. */}}
{{- define "bmt.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Values that exclude or require each other. */}}
{{- define "bmt.check" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled: choose one; both would scale the same Deployment" -}}
{{- end -}}
{{- if and .Values.valkey.enabled (or .Values.registry.url .Values.registry.existingSecret) -}}
{{- fail "valkey.enabled: registry.url or registry.existingSecret is set too; choose one" -}}
{{- end -}}
{{- $reachable := or .Values.monitoring.open (gt (int .Values.monitoring.port) 0) -}}
{{- if and (ne .Values.monitoring.monitor "none") (not $reachable) (not .Values.monitoring.existingSecret) -}}
{{- fail "monitoring.monitor: /metrics needs an API key; set monitoring.existingSecret to a Secret with one of scope metrics, or monitoring.port to a port without keys" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker) -}}
{{- fail "inferencePool.endpointPicker: set the name of the endpoint picker's Service" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not $reachable) -}}
{{- fail "inferencePool.enabled: its endpoint picker reads /metrics without an API key; set monitoring.port (and the picker's --model-server-metrics-port) or monitoring.open" -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity of memory or disk, such as 4Gi, 500M or 1073741824. */}}
{{- define "bmt.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := toString . -}}
{{- if kindIs "float64" . }}{{ $text = printf "%.0f" . }}{{ end -}}
{{- if not (regexMatch "^[0-9]+(\\.[0-9]+)?([kKMGT]|[KMGT]i)?$" $text) -}}
{{- fail (printf "%s: not a quantity; write it as 4Gi or 500M" $text) -}}
{{- end -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- mulf (float64 (trimSuffix $unit $text)) (get $units $unit) | floor | int64 -}}
{{- end -}}

{{/* Bytes that the masks in Valkey may take: it refuses uploads there, before the kernel ends it. */}}
{{- define "bmt.valkeyMaxmemory" -}}
{{- $limit := dig "limits" "memory" "" .Values.valkey.resources -}}
{{- if not (or .Values.valkey.maxmemory $limit) -}}
{{- fail "valkey.maxmemory: set it, or valkey.resources.limits.memory; without a bound Valkey is killed when memory runs out" -}}
{{- end -}}
{{- $bytes := 0 -}}
{{- if .Values.valkey.maxmemory -}}
{{- $bytes = include "bmt.bytes" .Values.valkey.maxmemory | int64 -}}
{{- else -}}
{{- $bytes = divf (mulf (include "bmt.bytes" $limit | int64) 6) 10 | floor | int64 -}}
{{- end -}}
{{- if $limit -}}
{{- if gt (mul $bytes 10) (mul (include "bmt.bytes" $limit | int64) 8) -}}
{{- fail (printf "valkey.maxmemory: %d bytes are more than 80 %% of valkey.resources.limits.memory (%v); a rewrite of the append-only file needs the rest" $bytes $limit) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "bmt.bytes" .Values.valkey.size | int64) (mul $bytes 3) -}}
{{- fail (printf "valkey.size: %v is less than 3 times valkey.maxmemory (%d bytes); the append-only file doubles before it is rewritten, and the rewrite stands next to it" .Values.valkey.size $bytes) -}}
{{- end -}}
{{- $bytes -}}
{{- end -}}
