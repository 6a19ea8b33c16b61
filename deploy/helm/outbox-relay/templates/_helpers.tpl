{{- define "outbox-relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of objects that belong to the relay's pods. */}}
{{- define "outbox-relay.relaySelector" -}}
{{ include "outbox-relay.selector" . }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "outbox-relay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "outbox-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "outbox-relay.serviceAccountName" -}}
{{- default (ternary (include "outbox-relay.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "outbox-relay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/*
A value of `settings` as text. YAML makes floats of large whole numbers, which would print as 1.6777216e+07, and false of the word off.
*/}}
{{- define "outbox-relay.text" -}}
{{- $value := .value -}}
{{- if kindIs "float64" $value -}}
{{- ternary (int64 $value) $value (eq (floor $value) $value) -}}
{{- else if and (kindIs "bool" $value) (eq .name "RELAY_WAKE_UP") -}}
off
{{- else -}}
{{- $value -}}
{{- end -}}
{{- end -}}

{{/* A duration such as 40s or 1m 30s in whole seconds, rounded up; 0 if it has a unit that is not known here. */}}
{{- define "outbox-relay.seconds" -}}
{{- $milliseconds := 0 -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "min" 60000 "h" 3600000 -}}
{{- if regexMatch "^\\s*([0-9]+\\s*(ms|s|min|m|h)\\s*)+$" . -}}
{{- range regexFindAll "[0-9]+\\s*(ms|s|min|m|h)" . -1 -}}
{{- $milliseconds = add $milliseconds (mul (regexFind "[0-9]+" .) (get $units (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- end -}}
{{- div (add $milliseconds 999) 1000 -}}
{{- end -}}

{{- define "outbox-relay.shutdownSeconds" -}}
{{- include "outbox-relay.seconds" (get .Values.settings "RELAY_SHUTDOWN_TIMEOUT" | default "40s" | toString) -}}
{{- end -}}

{{- define "outbox-relay.adminAddress" -}}
{{ ternary .Values.metrics.address "127.0.0.1" .Values.metrics.enabled }}:9187
{{- end -}}

{{/* The volume with the files of `secrets` and `files`, each under the name of its setting. */}}
{{- define "outbox-relay.settingsVolume" -}}
- name: settings
  projected:
    # 0440: for the group of fsGroup, which is that of the process.
    defaultMode: 288
    sources:
      {{- .sources | nindent 6 }}
- name: tmp
  emptyDir: { sizeLimit: 1Gi }
{{- end -}}

{{- define "outbox-relay.source" -}}
{{- if .from.existingConfigMap }}
- configMap:
    name: {{ .from.existingConfigMap }}
{{- else }}
- secret:
    name: {{ .from.existingSecret | default .otherwise }}
{{- end }}
    items: [{ key: {{ .from.key | default .name | quote }}, path: {{ .name }} }]
{{- end -}}

{{/* What the containers of the relay, of the migration and of the test have in common. */}}
{{- define "outbox-relay.container" -}}
image: {{ include "outbox-relay.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{- define "outbox-relay.mounts" -}}
- { name: settings, mountPath: /etc/outbox-relay, readOnly: true }
- { name: tmp, mountPath: /tmp }
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.pod" -}}
# The relay does not talk to Kubernetes.
automountServiceAccountToken: false
# A service called kafka or relay would bring variables that look like settings.
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraInitContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The relay's own environment and volumes; the test runs `check` with the same. */}}
{{- define "outbox-relay.relayEnv" -}}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ include "outbox-relay.text" (dict "name" $name "value" $value) | quote }}
{{- end }}
{{- range $name, $from := .Values.secrets }}
- name: {{ $name }}_FILE
  value: /etc/outbox-relay/{{ $name }}
{{- end }}
{{- range $name, $from := .Values.files }}
- name: {{ $name }}
  value: /etc/outbox-relay/{{ $name }}
{{- end }}
- name: RELAY_ADMIN_ADDRESS
  value: {{ include "outbox-relay.adminAddress" . | quote }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.relayVolumes" -}}
{{- $sources := "" -}}
{{- range $name, $from := merge (dict) .Values.secrets .Values.files -}}
{{- $sources = print $sources (include "outbox-relay.source" (dict "name" $name "from" $from "otherwise" $.Values.existingSecret)) -}}
{{- end -}}
{{ include "outbox-relay.settingsVolume" (dict "sources" (trim $sources)) }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
