{{/* Values that exclude or require each other: what could not work on a cluster ends here, with the fix. */}}
{{- define "bmt.check" -}}
{{- include "bmt.checkNames" . -}}
{{- include "bmt.checkRegistry" . -}}
{{- include "bmt.checkModels" . -}}
{{- include "bmt.checkRollout" . -}}
{{- include "bmt.checkScaling" . -}}
{{- include "bmt.checkFlags" . -}}
{{- include "bmt.checkPod" . -}}
{{- include "bmt.checkRoutes" . -}}
{{- include "bmt.checkJobs" . -}}
{{- end -}}

{{- define "bmt.checkNames" -}}
{{- if not (regexMatch "^[a-z]" (include "bmt.name" .)) -}}
{{- fail (printf "fullnameOverride: %q is no name of a Service, which begins with a letter; set another" (include "bmt.name" .)) -}}
{{- end -}}
{{- range $label, $value := .Values.podLabels -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance") -}}
{{- fail (printf "podLabels: %s selects the server's pods and is set by the chart" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkRegistry" -}}
{{- if and .Values.valkey.enabled (or .Values.registry.url .Values.registry.existingSecret) -}}
{{- fail "valkey.enabled: registry.url or registry.existingSecret is set too; choose one" -}}
{{- end -}}
{{- if and .Values.registry.passwordSecret (not .Values.registry.url) -}}
{{- fail "registry.passwordSecret: it completes registry.url, which is empty; a URL in registry.existingSecret has its own password" -}}
{{- end -}}
{{- if and .Values.registry.passwordSecret .Values.registry.existingSecret -}}
{{- fail "registry.passwordSecret: registry.existingSecret holds the whole URL; choose one" -}}
{{- end -}}
{{- if and .Values.valkey.enabled (not .Values.secrets.generate) (not .Values.valkey.existingSecret) -}}
{{- fail "valkey.existingSecret: required if secrets.generate is false; a Secret with the key password" -}}
{{- end -}}
{{- if and .Values.privateCA.configMap .Values.privateCA.secret -}}
{{- fail "privateCA: configMap and secret are set; choose one" -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkModels" -}}
{{- $cache := .Values.modelCache -}}
{{- $claim := include "bmt.modelsClaim" . -}}
{{- $most := include "bmt.maxReplicas" . | int -}}
{{- if and $cache.volume $claim -}}
{{- fail "modelCache.volume: modelCache.enabled or existingClaim is set too; choose one" -}}
{{- end -}}
{{- if and $claim (not $cache.accessModes) -}}
{{- fail "modelCache.accessModes: name the modes of the claim, as in [ReadWriteMany]" -}}
{{- end -}}
{{- if and $claim (gt $most 1) (not (include "bmt.sharedModels" .)) -}}
{{- fail (printf "modelCache.accessModes: a disk with %s is attached to one node, and up to %d pods would wait for it; use a storage class with ReadWriteMany and say so here, or set modelCache.enabled=false" (join ", " $cache.accessModes) $most) -}}
{{- end -}}
{{- if and (eq (include "bmt.readOnlyModels" .) "true") .Values.huggingface.download -}}
{{- fail "huggingface.download: the model cache is ReadOnlyMany, so nothing can be downloaded to it; set huggingface.download=false" -}}
{{- end -}}
{{- if and (not .Values.huggingface.download) (not $claim) (not $cache.volume) (not (hasPrefix "/" .Values.model.id)) -}}
{{- fail (printf "huggingface.download: without it model.id (%s) must be in modelCache, or be a folder of the image" .Values.model.id) -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkRollout" -}}
{{- $strategy := .Values.strategy -}}
{{- $rolling := default (dict) $strategy.rollingUpdate -}}
{{- if and (eq (default "" $strategy.type) "Recreate") $rolling -}}
{{- fail "strategy.rollingUpdate: the type is Recreate; remove one" -}}
{{- end -}}
{{- if and $strategy (ne (default "RollingUpdate" $strategy.type) "Recreate") -}}
{{- $surge := toString (dig "maxSurge" "25%" $rolling) -}}
{{- $unavailable := toString (dig "maxUnavailable" "25%" $rolling) -}}
{{- if and (has $surge (list "0" "0%")) (has $unavailable (list "0" "0%")) -}}
{{- fail "strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so no pod could be replaced" -}}
{{- end -}}
{{- if and (include "bmt.modelsClaim" .) (not (include "bmt.sharedModels" .)) (not (has $surge (list "0" "0%"))) -}}
{{- fail (printf "strategy.rollingUpdate.maxSurge: %s starts the new pod before the old one has released the model cache, which only one node can attach; set maxSurge 0 and maxUnavailable 1" $surge) -}}
{{- end -}}
{{- end -}}
{{- $cache := mulf (float64 .Values.masks.cacheGiB) 1073741824 -}}
{{- if gt (mulf $cache 10) (mulf (include "bmt.bytes" .Values.scratchSize | float64) 8) -}}
{{- fail (printf "scratchSize: %v leaves the mask cache (masks.cacheGiB, %v GiB) no room: the kubelet would evict the pod when it fills; set at least 1.25 times that" .Values.scratchSize .Values.masks.cacheGiB) -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkScaling" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled: choose one; both would scale the same Deployment" -}}
{{- end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- $scaler := get $.Values $name -}}
{{- if $scaler.enabled -}}
{{- if and (eq $.Values.monitoring.monitor "none") (not $.Values.monitoring.selector) -}}
{{- fail (printf "%s.enabled: without monitoring.monitor there are no series to scale by, and the number of pods would stay at its least; set monitoring.monitor, or monitoring.selector if another monitor scrapes the pods" $name) -}}
{{- end -}}
{{- if gt (int $scaler.minReplicas) (int $scaler.maxReplicas) -}}
{{- fail (printf "%s.minReplicas: %d is more than maxReplicas (%d)" $name (int $scaler.minReplicas) (int $scaler.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keda.authModes (not .Values.keda.triggerAuthentication) -}}
{{- fail "keda.authModes: name the TriggerAuthentication in keda.triggerAuthentication" -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkFlags" -}}
{{- $values := dict "--host" "" "--port" "" "--uds" "" "--data-dir" "" "--registry" "registry" "--blobs" "blobs.url" "--no-auth" "" "--mask-mode" "masks.mode" "--mask-memory-mib" "masks.memoryMiB" "--mask-memory" "masks.memoryMiB" "--mask-cache-gib" "masks.cacheGiB" "--max-sparsity" "masks.maxSparsity" "--max-density" "masks.maxSparsity" "--hang-seconds" "probes.livenessSeconds" "--shutdown-timeout" "drain.seconds" "--tensor-parallel-size" "tensorParallelSize" "-tp" "tensorParallelSize" "--max-model-len" "model.maxLength" "--revision" "model.revision" "--served-model-name" "model.servedName" "--metrics-open" "monitoring.open" "--metrics-port" "monitoring.port" "--ssl-certfile" "tls.existingSecret" "--ssl-keyfile" "tls.existingSecret" "--enable-ssl-refresh" "tls.existingSecret" "--otlp-traces-endpoint" "tracing.endpoint" -}}
{{- $nodes := list "--nnodes" "--node-rank" "--master-addr" "--master-port" "--headless" "--data-parallel-address" "--data-parallel-rpc-port" "--data-parallel-hybrid-lb" "--data-parallel-external-lb" "--data-parallel-start-rank" -}}
{{- $gpus := list "--pipeline-parallel-size" "-pp" "--data-parallel-size" "-dp" "--decode-context-parallel-size" -}}
{{- range .Values.extraArgs -}}
{{- $flag := regexFind "^[^=]*" (toString .) | replace "_" "-" -}}
{{- if hasKey $values $flag -}}
{{- fail (printf "extraArgs: %s is set by the chart; %s" $flag (ternary "remove it" (printf "set %s" (get $values $flag)) (eq (get $values $flag) ""))) -}}
{{- end -}}
{{- if or (has $flag $nodes) (eq (toString .) "--distributed-executor-backend=ray") -}}
{{- fail (printf "extraArgs: %s is for a server on several nodes, whose pods the chart does not make: a node without an API process cannot receive masks. Use the GPUs of one node (tensorParallelSize) and more replicas" $flag) -}}
{{- end -}}
{{- if and (has $flag $gpus) (not $.Values.resources) -}}
{{- fail (printf "resources: the chart counts GPUs by tensorParallelSize alone; with %s name the container's resources" $flag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkPod" -}}
{{- $volumes := list "scratch" "tmp" "shm" "models" "registry-ca" "private-ca" "tls" -}}
{{- $paths := list "/scratch" "/tmp" "/dev/shm" "/models" "/etc/bmt/registry" "/etc/bmt/ca" "/etc/bmt/tls" -}}
{{- range .Values.extraVolumes -}}
{{- if has .name $volumes -}}
{{- fail (printf "extraVolumes: %s is a volume of the chart; choose another name, or modelCache.volume for models" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- if has (trimSuffix "/" .mountPath) $paths -}}
{{- fail (printf "extraVolumeMounts: %s is mounted by the chart; choose another path, or modelCache.volume for models" .mountPath) -}}
{{- end -}}
{{- end -}}
{{- range concat .Values.initContainers .Values.sidecars -}}
{{- if eq .name "server" -}}
{{- fail "sidecars and initContainers: server is the chart's own container; choose another name" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkRoutes" -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker) -}}
{{- fail "inferencePool.endpointPicker: set the name of the endpoint picker's Service" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: set at least one host name" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: set the Gateway, as in [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- if .Values.inferencePool.enabled -}}
{{- fail "inferencePool.enabled: gateways reach the pods of an InferencePool by HTTP, and tls.existingSecret makes them serve HTTPS; end TLS at the gateway" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.backendCA) -}}
{{- fail "httpRoute.backendCA: with tls.existingSecret name a ConfigMap whose ca.crt checks the pods' certificate, or the gateway would speak HTTP to them" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.annotations) (not .Values.service.annotations) -}}
{{- fail "ingress.annotations: with tls.existingSecret tell the controller to speak HTTPS to the pods, as in nginx.ingress.kubernetes.io/backend-protocol: HTTPS" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") -}}
{{- fail "service.loadBalancerSourceRanges: service.type is not LoadBalancer" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.from (ne .Values.monitoring.monitor "none") (eq (int .Values.monitoring.port) 0) (not .Values.monitoring.from) -}}
{{- fail "monitoring.from: networkPolicy.from would shut out Prometheus; name its peers here, as in [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if and .Values.monitoring.rules (eq .Values.monitoring.monitor "none") (not .Values.monitoring.selector) -}}
{{- fail "monitoring.rules: without monitoring.monitor there are no series to alert by; set it, or monitoring.selector if another monitor scrapes the pods" -}}
{{- end -}}
{{- $port := int .Values.monitoring.port -}}
{{- $reachable := or .Values.monitoring.open (gt $port 0) -}}
{{- if and (ne .Values.monitoring.monitor "none") (not $reachable) (not .Values.monitoring.existingSecret) -}}
{{- fail "monitoring.monitor: /metrics needs an API key; set monitoring.existingSecret to a Secret with one of scope metrics, or monitoring.port to a port without keys" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not $reachable) -}}
{{- fail "inferencePool.enabled: its endpoint picker reads /metrics without an API key; set monitoring.port (and the port of the picker's metrics-data-source, or its --model-server-metrics-port before 0.10) or monitoring.open" -}}
{{- end -}}
{{- if has $port (list 8000 (int .Values.service.port)) -}}
{{- fail (printf "monitoring.port: %d is the API's port; choose another" $port) -}}
{{- end -}}
{{- if and (gt $port 0) (eq .Values.monitoring.monitor "service") (ne .Values.service.type "ClusterIP") -}}
{{- fail (printf "monitoring.monitor: the Service is a %s and has no port without keys; set monitor to pod" .Values.service.type) -}}
{{- end -}}
{{- end -}}

{{- define "bmt.checkJobs" -}}
{{- if .Values.trainingJob.enabled -}}
{{- if not (has .Values.model.revision (list "" "main")) -}}
{{- fail (printf "trainingJob.enabled: the trainer reads the model's main revision, and model.revision is %s; the server would refuse its mask" .Values.model.revision) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z0-9]+([._-][a-z0-9]+)*$" .Values.trainingJob.mask) -}}
{{- fail (printf "trainingJob.mask: %q is no name of a mask; use a-z and 0-9, with single '.', '_' or '-' between them" .Values.trainingJob.mask) -}}
{{- end -}}
{{- if not (or .Values.trainingJob.existingSecret (include "bmt.adminSecret" .)) -}}
{{- fail "trainingJob.existingSecret: name a Secret with api-key, a key of scope upload" -}}
{{- end -}}
{{- range list "model" "output" -}}
{{- if hasKey $.Values.trainingJob.config . -}}
{{- fail (printf "trainingJob.config: %s is set by the chart" .) -}}
{{- end -}}
{{- end -}}
{{- range .Values.trainingJob.extraVolumes -}}
{{- if has .name (list "scratch" "tmp" "shm" "recipe" "models" "private-ca" "tls") -}}
{{- fail (printf "trainingJob.extraVolumes: %s is a volume of the chart; choose another name" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.worker.enabled -}}
{{- if not (has .Values.model.revision (list "" "main")) -}}
{{- fail (printf "worker.enabled: a worker reads the model's main revision, and model.revision is %s; the server would give it no job" .Values.model.revision) -}}
{{- end -}}
{{- if not .Values.worker.existingSecret -}}
{{- fail "worker.existingSecret: name a Secret with api-key, a key of scope train" -}}
{{- end -}}
{{- $files := false -}}
{{- range .Values.extraArgs -}}{{- if regexMatch "^--files(=|$)" . -}}{{- $files = true -}}{{- end -}}{{- end -}}
{{- range .Values.extraEnv -}}{{- if eq .name "BMT_FILES" -}}{{- $files = true -}}{{- end -}}{{- end -}}
{{- if not $files -}}
{{- fail "worker.enabled: the server takes no jobs without a place for files; set --files=s3://… in extraArgs" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.valkey.restore (not .Values.backup.schedule) (not .Values.backup.existingClaim) -}}
{{- fail "valkey.restore: no claim has snapshots; set backup.existingClaim, or backup.schedule" -}}
{{- end -}}
{{- if .Values.backup.schedule -}}
{{- if not .Values.valkey.enabled -}}
{{- fail "backup.schedule: it copies the chart's own Valkey (valkey.enabled); back up another registry where it runs" -}}
{{- end -}}
{{- if not .Values.backup.existingClaim -}}
{{- $need := mul (include "bmt.valkeyMaxmemory" . | int64) (int64 .Values.backup.keep) -}}
{{- if lt (include "bmt.bytes" .Values.backup.size | int64) $need -}}
{{- fail (printf "backup.size: %v is less than backup.keep (%d) times valkey.maxmemory, %d bytes" .Values.backup.size (int .Values.backup.keep) $need) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
