{{/*
Whether an image is one of a list, in CEL; what ends with * stands for all that begin so. Takes (list expression images).
*/}}
{{- define "finetune-operator.celImage" -}}
{{- $exact := list -}}
{{- $prefixes := list -}}
{{- range index . 1 -}}
{{- if hasSuffix "*" . -}}
{{- $prefixes = append $prefixes (trimSuffix "*" .) -}}
{{- else -}}
{{- $exact = append $exact . -}}
{{- end -}}
{{- end -}}
({{ index . 0 }} in {{ $exact | toJson }} || {{ $prefixes | toJson }}.exists(p, {{ index . 0 }}.startsWith(p)))
{{- end -}}
