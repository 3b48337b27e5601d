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
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker) -}}
{{- fail "inferencePool.endpointPicker: set the name of the endpoint picker's Service" -}}
{{- end -}}
{{- end -}}
