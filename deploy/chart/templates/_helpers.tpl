{{- define "bmt.name" -}}
{{- default (printf "%s" .Release.Name) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of an object that belongs to the release. Arguments: root, suffix, and the longest length of its
kind. A hash shortens a name that would be longer, so that two never meet. */}}
{{- define "bmt.child" -}}
{{- $name := printf "%s-%s" (include "bmt.name" .root) .suffix -}}
{{- $most := default 63 .most | int -}}
{{- if gt (len $name) $most -}}
{{- $room := int (sub $most (add 10 (len .suffix))) -}}
{{- printf "%s-%s-%s" (include "bmt.name" .root | trunc $room | trimSuffix "-") ($name | sha256sum | trunc 8) .suffix -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* A StatefulSet's name is in a label with a hash of 10 characters more. */}}
{{- define "bmt.valkeyName" -}}
{{- include "bmt.child" (dict "root" . "suffix" "valkey" "most" 52) -}}
{{- end -}}

{{- define "bmt.backupName" -}}
{{- include "bmt.child" (dict "root" . "suffix" "backup" "most" 52) -}}
{{- end -}}
{{- define "bmt.backupClaim" -}}
{{- default (include "bmt.backupName" .) .Values.backup.existingClaim -}}
{{- end -}}

{{- define "bmt.selector" -}}
app.kubernetes.io/name: bmt-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bmt.labels" -}}
{{ include "bmt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of the pods of a Job or of another program of the release; the argument has root and app. They
stay the same from version to version, because a Job's template cannot change. */}}
{{- define "bmt.appLabels" -}}
app.kubernetes.io/name: {{ .app }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
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

{{/* Largest number of servers that may run. */}}
{{- define "bmt.maxReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{ int .Values.autoscaling.maxReplicas }}
{{- else if .Values.keda.enabled -}}{{ int .Values.keda.maxReplicas }}
{{- else -}}{{ int .Values.replicas }}
{{- end -}}
{{- end -}}

{{- define "bmt.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{- define "bmt.host" -}}
{{ include "bmt.name" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Address of the server within the cluster. */}}
{{- define "bmt.url" -}}
{{ include "bmt.scheme" . }}://{{ include "bmt.host" . }}:{{ int .Values.service.port }}
{{- end -}}

{{/* Prometheus labels of this release's series. A pod's name is the Deployment's, a hash and five characters. */}}
{{- define "bmt.series" -}}
{{- if .Values.monitoring.selector -}}
{{- .Values.monitoring.selector -}}
{{- else -}}
{{- printf "namespace=%q,pod=~%q" .Release.Namespace (printf "%s-[a-z0-9]{1,10}-?[a-z0-9]{5}" (include "bmt.name" .)) -}}
{{- end -}}
{{- end -}}

{{/* Name of the Secret with the administrator's key; empty: none, the server prints a key. */}}
{{- define "bmt.adminSecret" -}}
{{- if .Values.auth.existingSecret -}}
{{- .Values.auth.existingSecret -}}
{{- else if .Values.secrets.generate -}}
{{- include "bmt.child" (dict "root" . "suffix" "admin") -}}
{{- end -}}
{{- end -}}

{{- define "bmt.valkeySecret" -}}
{{- default (include "bmt.valkeyName" .) .Values.valkey.existingSecret -}}
{{- end -}}

{{/* Environment variables with the registry's URL. The server encodes the password. */}}
{{- define "bmt.registryEnv" -}}
{{- if .Values.valkey.enabled }}
- name: BMT_REGISTRY
  value: redis://{{ include "bmt.valkeyName" . }}:6379/0
- name: BMT_REGISTRY_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "bmt.valkeySecret" . }}
      key: password
{{- else if .Values.registry.existingSecret }}
- name: BMT_REGISTRY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.registry.existingSecret }}
      key: {{ .Values.registry.secretKey }}
{{- else }}
- name: BMT_REGISTRY
  value: {{ required "registry: set registry.url, registry.existingSecret or valkey.enabled" .Values.registry.url | quote }}
{{- with .Values.registry.passwordSecret }}
- name: BMT_REGISTRY_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.registry.passwordKey }}
{{- end }}
{{- end }}
{{- with .Values.blobs.url }}
- name: BMT_BLOBS
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Sources of whole environments: of the operator, and credentials of the object store. */}}
{{- define "bmt.envFrom" -}}
{{- with .Values.extraEnvFrom }}
{{- toYaml . }}
{{- end }}
{{- with .Values.blobs.existingSecret }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{/* Mount and volume of the registry's CA certificate, as lists. */}}
{{- define "bmt.registryMounts" -}}
{{- if .Values.registry.caSecret }}
- {name: registry-ca, mountPath: /etc/bmt/registry, readOnly: true}
{{- end }}
{{- end -}}
{{- define "bmt.registryVolumes" -}}
{{- with .Values.registry.caSecret }}
- name: registry-ca
  secret:
    secretName: {{ . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}

{{/* Environment, mount and volume of privateCA. */}}
{{- define "bmt.caEnv" -}}
{{- if or .Values.privateCA.configMap .Values.privateCA.secret }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "OTEL_EXPORTER_OTLP_CERTIFICATE" }}
- name: {{ . }}
  value: /etc/bmt/ca/ca.crt
{{- end }}
{{- end }}
{{- end -}}
{{- define "bmt.caMounts" -}}
{{- if or .Values.privateCA.configMap .Values.privateCA.secret }}
- {name: private-ca, mountPath: /etc/bmt/ca, readOnly: true}
{{- end }}
{{- end -}}
{{- define "bmt.caVolumes" -}}
{{- if .Values.privateCA.configMap }}
- name: private-ca
  configMap:
    name: {{ .Values.privateCA.configMap }}
    items: [{key: {{ .Values.privateCA.key }}, path: ca.crt}]
{{- else if .Values.privateCA.secret }}
- name: private-ca
  secret:
    secretName: {{ .Values.privateCA.secret }}
    items: [{key: {{ .Values.privateCA.key }}, path: ca.crt}]
{{- end }}
{{- end -}}

{{/* Environment of programs that read models from the Hub. */}}
{{- define "bmt.hubEnv" -}}
{{- with .Values.huggingface.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: token
{{- end }}
- name: HF_HUB_OFFLINE
  value: {{ ternary "0" "1" .Values.huggingface.download | quote }}
{{- end -}}

{{/* `true` if a claim holds the models. */}}
{{- define "bmt.modelsClaim" -}}
{{- if or .Values.modelCache.enabled .Values.modelCache.existingClaim -}}true{{- end -}}
{{- end -}}

{{/* `true` if a volume that pods of any node can attach holds the models. */}}
{{- define "bmt.sharedModels" -}}
{{- if .Values.modelCache.volume -}}true
{{- else if include "bmt.modelsClaim" . -}}
{{- if or (has "ReadWriteMany" .Values.modelCache.accessModes) (has "ReadOnlyMany" .Values.modelCache.accessModes) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* `true` if models cannot be written to their volume. */}}
{{- define "bmt.readOnlyModels" -}}
{{- $modes := .Values.modelCache.accessModes -}}
{{- if and (include "bmt.modelsClaim" .) (has "ReadOnlyMany" $modes) (not (has "ReadWriteMany" $modes)) (not (has "ReadWriteOnce" $modes)) -}}true{{- end -}}
{{- end -}}

{{/* Volume `models`. */}}
{{- define "bmt.modelsVolume" -}}
- name: models
  {{- if .Values.modelCache.volume }}
  {{- toYaml .Values.modelCache.volume | nindent 2 }}
  {{- else if include "bmt.modelsClaim" . }}
  persistentVolumeClaim:
    claimName: {{ default (include "bmt.child" (dict "root" . "suffix" "models")) .Values.modelCache.existingClaim }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}

{{/* A list of environment variables in which those of `extra` replace those of `own`, a YAML list. */}}
{{- define "bmt.env" -}}
{{- $names := list -}}
{{- range .extra }}{{ $names = append $names .name }}{{ end -}}
{{- $all := list -}}
{{- range fromYamlArray .own -}}
{{- if not (has .name $names) }}{{ $all = append $all . }}{{ end -}}
{{- end -}}
{{- with concat $all (default (list) .extra) }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Fields of a pod that all pods share. Arguments: root, and `own`, values that replace the common ones. */}}
{{- define "bmt.pod" -}}
{{- $values := .root.Values -}}
{{- $own := default (dict) .own -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml (default $values.podSecurityContext $own.podSecurityContext) | nindent 2 }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- with default $values.priorityClassName $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with default $values.nodeSelector $own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default $values.tolerations $own.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $own.affinity }}
affinity: {{- toYaml $own.affinity | nindent 2 }}
{{- else if not $own }}
{{- with $values.affinity.nodeAffinity }}
affinity:
  nodeAffinity: {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}
{{- with $values.dnsConfig }}
dnsConfig: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Strategy of rollouts. A new pod that waits for a GPU, or for a disk that the old pod's node has, would
wait for ever. */}}
{{- define "bmt.strategy" -}}
{{- if .Values.strategy -}}
{{- toYaml .Values.strategy -}}
{{- else -}}
{{- $oneNode := and (include "bmt.modelsClaim" .) (not (include "bmt.sharedModels" .)) | empty | not -}}
{{- $surge := and (eq .Values.accelerator "cpu") (not $oneNode) -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: {{ ternary 1 0 $surge }}
  maxUnavailable: {{ ternary 0 1 $surge }}
{{- end -}}
{{- end -}}
