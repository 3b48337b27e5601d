{{/* Template of the training Job's pod. Arguments: root, run (the run's alias), recipe (its ConfigMap). */}}
{{- define "bmt.trainingPod" -}}
{{- $root := .root -}}
{{- $job := .root.Values.trainingJob -}}
metadata:
  labels: {{- include "bmt.appLabels" (dict "root" $root "app" "bmt-trainer") | nindent 4 }}
spec:
  restartPolicy: OnFailure
  {{- include "bmt.pod" (dict "root" $root) | nindent 2 }}
  {{- with $root.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    - name: trainer
      image: {{ default (printf "bmt-adapters/trainer:%s" $root.Chart.AppVersion) $job.image }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [sh, -euc]
      args:
        - |
          {{- $root.Files.Get "files/train.sh" | nindent 10 }}
      env: {{- include "bmt.env" (dict "own" (include "bmt.trainingEnv" .) "extra" $job.extraEnv) | nindent 8 }}
      securityContext: {{- toYaml $root.Values.containerSecurityContext | nindent 8 }}
      resources: {{- toYaml $job.resources | nindent 8 }}
      volumeMounts:
        - {name: scratch, mountPath: /scratch}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: recipe, mountPath: /recipe, readOnly: true}
        - name: models
          mountPath: /models
          {{- if eq (include "bmt.readOnlyModels" $root) "true" }}
          readOnly: true
          {{- end }}
        {{- if $root.Values.tls.existingSecret }}
        - {name: tls, mountPath: /etc/bmt/tls, readOnly: true}
        {{- end }}
        {{- include "bmt.caMounts" $root | nindent 8 }}
        {{- with $job.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - name: scratch
      emptyDir: {}
    - name: tmp
      emptyDir: {}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: 2Gi}
    - name: recipe
      configMap: {name: {{ .recipe | quote }}}
    {{- if eq (include "bmt.sharedModels" $root) "true" }}
    {{- include "bmt.modelsVolume" $root | nindent 4 }}
    {{- else }}
    # A disk of one node may be at the server's.
    - name: models
      emptyDir: {}
    {{- end }}
    {{- with $root.Values.tls.existingSecret }}
    - name: tls
      secret:
        secretName: {{ . }}
        items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
    {{- include "bmt.caVolumes" $root | nindent 4 }}
    {{- with $job.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}

{{/* Environment of the training Job; the argument is the pod's. */}}
{{- define "bmt.trainingEnv" -}}
{{- $root := .root -}}
{{- $job := .root.Values.trainingJob -}}
- name: METHOD
  value: {{ $job.method }}
- name: MODEL
  value: {{ required "model.id: the base model to train on" $root.Values.model.id | quote }}
- name: MASK
  value: {{ $job.mask | quote }}
- name: RUN
  value: run-{{ .run }}
- name: BMT_URL
  value: {{ include "bmt.url" $root }}
- name: BMT_API_KEY
  valueFrom:
    secretKeyRef:
      {{- if $job.existingSecret }}
      name: {{ $job.existingSecret }}
      key: api-key
      {{- else }}
      name: {{ include "bmt.adminSecret" $root }}
      key: admin-key
      {{- end }}
{{ include "bmt.hubEnv" $root | trim }}
{{- include "bmt.caEnv" $root }}
{{- if $root.Values.tls.existingSecret }}
- name: SERVER_CA
  value: /etc/bmt/tls/ca.crt
{{- end }}
- name: HOME
  value: /scratch
- name: HF_HOME
  value: /models
{{- end -}}
