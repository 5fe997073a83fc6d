{{/*
A network as an ipBlock that never holds link-local addresses, where clouds hand out a node's credentials, nor their like
elsewhere. A network inside of those is refused. Takes a CIDR.
*/}}
{{- define "finetune-operator.ipBlock" -}}
{{- $address := index (splitList "/" .) 0 | lower -}}
{{- $length := index (splitList "/" .) 1 | int -}}
{{- $except := list -}}
{{- if contains ":" . -}}
{{- $metadata := list "fd00:ec2::254/128" "fd20:ce::254/128" -}}
{{- if eq $length 0 -}}
{{- $except = concat (list "fe80::/10") $metadata -}}
{{- else if has . (list "fc00::/7" "fd00::/8") -}}
{{- $except = $metadata -}}
{{- else if or (regexMatch "^fe[89ab]|^fd00:0?ec2:|^fd20:0{0,2}ce:" $address) (and (lt $length 10) (ne . "2000::/3")) -}}
{{- fail (printf "networkPolicy: %s has link-local or metadata addresses: name smaller networks, or ::/0, which goes without them" .) -}}
{{- end -}}
{{- else -}}
{{- $parts := splitList "." $address -}}
{{- $size := 1 -}}{{/* of the network, in blocks of 65,536 addresses */}}
{{- range until (max 0 (sub 16 $length) | int) -}}{{- $size = mul $size 2 -}}{{- end -}}
{{- $first := add (mul (index $parts 0 | int) 256) (index $parts 1 | int) -}}
{{- if eq (div $first $size) (div 43518 $size) -}}{{/* 169 * 256 + 254 */}}
{{- if ge $length 16 -}}
{{- fail (printf "networkPolicy: %s is link-local: runs must not reach it" .) -}}
{{- end -}}
{{- $except = list "169.254.0.0/16" -}}
{{- end -}}
{{- if eq $length 0 -}}
{{- $except = append $except "100.100.100.200/32" -}}
{{- end -}}
{{- end -}}
ipBlock:
  cidr: {{ . | quote }}
  {{- with $except }}
  except:
    {{- range . }}
    - {{ . | quote }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* Names of hosts are looked up. */}}
{{- define "finetune-operator.dnsEgress" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}

{{/* Networks are reached on some ports, on all if there are none. Takes a dictionary of cidrs and ports. */}}
{{- define "finetune-operator.cidrEgress" -}}
- to:
    {{- range .cidrs }}
    - {{ include "finetune-operator.ipBlock" . | nindent 6 | trim }}
    {{- end }}
  {{- with .ports }}
  ports:
    {{- range . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* The registry is reached. Takes the root. */}}
{{- define "finetune-operator.registryEgress" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Release.Namespace }}
      podSelector:
        matchLabels:
          {{- include "finetune-operator.selector" (list . "registry") | nindent 10 }}
  ports:
    - {protocol: TCP, port: 8080}
{{- end -}}
