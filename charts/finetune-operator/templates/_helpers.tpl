{{/* The common part of all names. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.registryName" -}}
{{- printf "%s-registry" (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{/* Names of what belongs to no namespace: two releases of one name in two namespaces have each their own. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s.%s" (include "finetune-operator.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "finetune-operator.registryHost" -}}
{{- printf "%s.%s.svc" (include "finetune-operator.registryName" .) .Release.Namespace -}}
{{- end -}}

{{/* The Secret with the registry's certificate; empty: it speaks HTTP. */}}
{{- define "finetune-operator.tlsSecret" -}}
{{- $tls := .Values.registry.tls -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail "registry.tls.existingSecret and registry.tls.certManager.enabled both say where the certificate is from: set one" -}}
{{- end -}}
{{- if $tls.certManager.enabled -}}
{{- printf "%s-tls" (include "finetune-operator.registryName" .) -}}
{{- else -}}
{{- $tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.registryScheme" -}}
{{- ternary "https" "http" (ne (include "finetune-operator.tlsSecret" .) "") -}}
{{- end -}}

{{- define "finetune-operator.registryUrl" -}}
{{- printf "%s://%s:8080" (include "finetune-operator.registryScheme" .) (include "finetune-operator.registryHost" .) -}}
{{- end -}}

{{/* What reads a registry's files over TLS has its certificate authority here. */}}
{{- define "finetune-operator.caFile" -}}/etc/finetune/registry/ca.crt{{- end -}}

{{/* How Prometheus reads the registry's metrics. */}}
{{- define "finetune-operator.scrapeTls" -}}
scheme: {{ include "finetune-operator.registryScheme" . }}
{{- with include "finetune-operator.tlsSecret" . }}
tlsConfig:
  serverName: {{ include "finetune-operator.registryHost" $ }}
  ca:
    secret:
      name: {{ . }}
      key: ca.crt
{{- end }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Labels by which a Deployment or a Service finds its pods. Takes (list $ component). */}}
{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* An image's reference. Takes (list $ image). */}}
{{- define "finetune-operator.image" -}}
{{- $image := index . 1 -}}
{{- $registry := dig "imageRegistry" "" ((index . 0).Values.global | default dict) -}}
{{- $repository := ternary (printf "%s/%s" (trimSuffix "/" $registry) $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default (index . 0).Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The pull secrets of the release's own pods: this chart's and the parent chart's. */}}
{{- define "finetune-operator.imagePullSecrets" -}}
{{- with concat .Values.imagePullSecrets (dig "imagePullSecrets" list (.Values.global | default dict)) }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What makes a pod meet the restricted Pod Security Standard, together with containerSecurity. */}}
{{- define "finetune-operator.podSecurity" -}}
runAsNonRoot: true
{{- if not .Values.openshift.enabled }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "finetune-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where a pod is scheduled. Takes the values of the component. */}}
{{- define "finetune-operator.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Metadata of a pod template, and what all pods share. Takes (list $ component). */}}
{{- define "finetune-operator.podMetadata" -}}
labels:
  {{- include "finetune-operator.selector" . | nindent 2 }}
  {{- with (index . 0).Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with (index . 0).Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
