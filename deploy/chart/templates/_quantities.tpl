{{/* Bytes of a quantity of memory or disk, such as 4Gi, 500M or 1073741824. */}}
{{- define "bmt.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $text := toString . -}}
{{- if kindIs "float64" . }}{{ $text = printf "%.0f" . }}{{ end -}}
{{- if not (regexMatch "^[0-9]+(\\.[0-9]+)?([kKMGTP]|[KMGTP]i)?$" $text) -}}
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
