{{/*
A network as an ipBlock that never holds link-local addresses, where clouds hand out a node's credentials, nor their like
elsewhere. A network inside of those is refused. Takes a CIDR.
*/}}
{{- define "finetune-operator.ipBlock" -}}
{{- $address := index (splitList "/" .) 0 | lower -}}
{{- $length := index (splitList "/" .) 1 | int -}}
{{- $size := 1 -}}{{/* of the network, in addresses of IPv4; in /32 of IPv6 */}}
{{- range until (max 0 (sub 32 $length) | int) -}}{{- $size = mul $size 2 -}}{{- end -}}
{{- $except := list -}}
{{- if contains ":" . -}}
{{- $groups := splitList ":" $address -}}
{{- $first := add (mul (printf "0x%s" (index $groups 0 | default "0") | int64) 65536) (printf "0x%s" (index $groups 1 | default "0") | int64) -}}
{{- $held := list -}}
{{- range $metadata, $place := dict "fd00:ec2::/32" "0xfd000ec2" "fd20:ce::254/128" "0xfd2000ce" "fd00:c1::a9fe:a9fe/128" "0xfd0000c1" "fd00:42::42/128" "0xfd000042" -}}
{{- if eq (div $first $size) (div (int64 $place) $size) -}}{{- $held = append $held $metadata -}}{{- end -}}
{{- end -}}
{{- if eq $length 0 -}}
{{- $except = concat (list "fe80::/10") $held -}}
{{- else if or (regexMatch "^fe[89ab]" $address) (and (lt $length 10) (not (has . (list "2000::/3" "fc00::/7" "fd00::/8")))) (and $held (ge $length 32)) -}}
{{- fail (printf "networkPolicy: %s has link-local or metadata addresses: name smaller networks, or ::/0, which goes without them" .) -}}
{{- else -}}
{{- $except = $held -}}
{{- end -}}
{{- else -}}
{{- $first := 0 -}}
{{- range splitList "." $address -}}{{- $first = add (mul $first 256) (int64 .) -}}{{- end -}}
{{- range list (dict "cidr" "169.254.0.0/16" "first" 2851995648 "size" 65536) (dict "cidr" "100.100.100.200/32" "first" 1684301000 "size" 1) (dict "cidr" "168.63.129.16/32" "first" 2822734096 "size" 1) -}}
{{- $larger := max $size .size -}}
{{- if eq (div $first $larger) (div .first $larger) -}}
{{- if le $size .size -}}
{{- fail (printf "networkPolicy: %s is link-local, or a cloud's metadata: runs must not reach it" $) -}}
{{- end -}}
{{- $except = append $except .cidr -}}
{{- end -}}
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

{{/*
Networks are reached on some ports, on all if there are none. Without networks there is no rule: one that names nobody
would open everything. Takes a dictionary of cidrs and ports.
*/}}
{{- define "finetune-operator.cidrEgress" -}}
{{- if .cidrs -}}
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
