{{- define "finetune.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- .Values.fullnameOverride | default $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "finetune.metadata" -}}
name: {{ include "finetune.name" . }}
namespace: {{ .Release.Namespace }}
labels: {{- include "finetune.labels" . | nindent 2 }}
{{- end -}}

{{- define "finetune.account" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "finetune.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "finetune.subjects" -}}
- kind: ServiceAccount
  name: {{ include "finetune.account" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* An image of `.image`, with the release's version for a tag. */}}
{{- define "finetune.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "finetune.leaseNamespace" -}}
{{ .Values.settings.leaseNamespace | default .Release.Namespace }}
{{- end -}}

{{/* Where the certificate of the metrics is mounted. */}}
{{- define "finetune.certificate" -}}
/etc/finetune-operator/metrics
{{- end -}}

{{/* A number without an exponent. */}}
{{- define "finetune.number" -}}
{{- if kindIs "float64" . }}{{ if eq (float64 (int64 .)) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* The settings as environment variables; what is empty is left to the operator. */}}
{{- define "finetune.env" -}}
{{- $settings := merge (dict
      "trainerImage" (include "finetune.image" (dict "image" .Values.trainerImage "root" .))
      "namespaces" (join "," .Values.namespaces)
      "leaseName" (.Values.settings.leaseName | default (include "finetune.name" .))
      "leaseNamespace" (include "finetune.leaseNamespace" .)
      "metricsAuthentication" ((.Values.metrics).authentication | default false)
      "metricsTlsFolder" (ternary "" (include "finetune.certificate" .) (empty ((.Values.metrics).tls).secretName))
      "kueuePriorityBoost" (.Values.kueue.priorityBoost | default false)
      "kueuePriorityBoostSeconds" (.Values.kueue.priorityBoostSeconds | default 600)
    ) (omit .Values.settings "leaseName" "leaseNamespace" "maxActiveDevices") -}}
{{- range $key, $value := $settings }}
{{- if or (ne (toString $value) "") (eq $key "maxActiveRunsPerNamespace") }}
- name: FINETUNE_OPERATOR_{{ snakecase $key | upper }}
  value: {{ include "finetune.number" $value | quote }}
{{- end }}
{{- end }}
{{- with .Values.settings.maxActiveDevices }}
{{- $parts := list }}
{{- range $resource, $count := . }}
{{- $parts = append $parts (printf "%s=%s" $resource (include "finetune.number" $count)) }}
{{- end }}
- name: FINETUNE_OPERATOR_MAX_ACTIVE_DEVICES
  value: {{ join "," $parts | quote }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What can't be meant, said before anything is installed. */}}
{{- define "finetune.check" -}}
{{- if and (gt (int .Values.replicas) 1) (eq (int .Values.settings.leaseSeconds) 0) }}
{{- fail "replicas: settings.leaseSeconds 0 means that there is only one operator; set replicas to 1, or a lease of 3 s or more" }}
{{- end }}
{{- if and .Values.kueue.priorityBoost (not .Values.kueue.enabled) }}
{{- fail "kueue.priorityBoost: needs kueue.enabled, since the operator reads a Workload before it changes it" }}
{{- end }}
{{- with .Values.networkPolicy.trainers }}
{{- if .enabled }}
{{- if not $.Values.namespaces }}
{{- fail "networkPolicy.trainers: needs namespaces, since a NetworkPolicy is for one namespace" }}
{{- end }}
{{- if eq $.Values.settings.podAccess "proxy" }}
{{- fail "networkPolicy.trainers: with settings.podAccess proxy it is the API server that asks the trainers, and it has no label to let it in by" }}
{{- end }}
{{- if and $.Values.podMonitor.enabled (not .from) }}
{{- fail "networkPolicy.trainers: name Prometheus in networkPolicy.trainers.from, else the podMonitor finds every trainer closed" }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
