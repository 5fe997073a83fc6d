{{/* What the operator may do where it watches. It never reads a Secret: pods refer to them by name. */}}
{{- define "finetune-operator.operatorRules" -}}
- apiGroups: [finetune.dev]
  resources: [trainingruns]  # patched with an annotation that says how the run ended, for when its status is lost
  verbs: [get, list, watch, patch]
- apiGroups: [finetune.dev]
  resources: [trainingruns/status]
  verbs: [update]
- apiGroups: [finetune.dev]
  resources: [trainingruns/finalizers]  # to own Jobs where owner references are checked
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs/status]  # its start time is cleared while it is suspended: the deadline must not count that time
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]  # deleted when the trainer died and another container keeps the pod alive
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]  # deleted when their run failed before it trained
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [events]  # listed to say why a pod does not start
  verbs: [create, list]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]  # a suspended run gives its place back; nothing of this is used where Kueue is not
  verbs: [list, patch]
{{- end -}}

{{/* What the registry may do where runs are: look up who is behind a token, and show a run's conditions. */}}
{{- define "finetune-operator.registryRules" -}}
- apiGroups: [""]
  resources: [pods, namespaces]  # a namespace that comes back under its name inherits nothing
  verbs: [get]
- apiGroups: [batch]
  resources: [jobs]  # a run's pod is of a Job that the run owns
  verbs: [get]
- apiGroups: [finetune.dev]
  resources: [trainingruns]  # their conditions stand on the pages
  verbs: [get]
{{- end -}}

{{/*
Rules bound to a service account: for the whole cluster, or in each watched namespace.
Takes (list $ role's name, service account, template of the rules).
*/}}
{{- define "finetune-operator.roles" -}}
{{- $root := index . 0 -}}
{{- $base := index . 1 -}}
{{- $account := index . 2 -}}
{{- $rules := index . 3 -}}
{{- $namespaces := $root.Values.watch.namespaces | default (list "") -}}
{{- range $namespace := $namespaces }}
{{- $scope := ternary "Role" "ClusterRole" (ne $namespace "") }}
{{- $name := ternary $base (printf "%s.%s" $base $root.Release.Namespace) (ne $namespace "") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}
metadata:
  name: {{ $name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- include "finetune-operator.labels" $root | nindent 4 }}
rules:
  {{- include $rules $root | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Binding
metadata:
  name: {{ $name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- include "finetune-operator.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $account }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}
