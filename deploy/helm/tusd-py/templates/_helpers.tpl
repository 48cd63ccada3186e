{{- define "tusd-py.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tusd-py.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tusd-py.labels" -}}
{{ include "tusd-py.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tusd-py.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tusd-py.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "tusd-py.check" -}}
{{- if not (or .Values.redis.url .Values.redis.existingSecret) }}{{ fail "set redis.url or redis.existingSecret: servers share locks, duplicates and jobs there" }}{{ end }}
{{- if and .Values.s3.enabled (not .Values.s3.bucket) }}{{ fail "set s3.bucket" }}{{ end }}
{{- if and .Values.worker.autoscaling.enabled (not .Values.worker.autoscaling.redisAddress) }}{{ fail "set worker.autoscaling.redisAddress: KEDA reads the queues there" }}{{ end }}
{{- end }}

{{- /* The variables of all containers. Settings of the values come last, so that they count. */ -}}
{{- define "tusd-py.env" -}}
- name: TUSD_LOG_FORMAT
  value: json
{{- if .Values.redis.existingSecret }}
- name: TUSD_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.secretKey }}}
{{- else }}
- name: TUSD_REDIS_URL
  value: {{ .Values.redis.url | quote }}
{{- end }}
{{- if .Values.s3.enabled }}
- name: TUSD_S3_BUCKET
  value: {{ .Values.s3.bucket | quote }}
{{- with .Values.s3.endpoint }}
- name: TUSD_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: TUSD_S3_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.objectPrefix }}
- name: TUSD_S3_OBJECT_PREFIX
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $name, $file := .Values.secretFiles }}
- name: {{ $name }}
  value: {{ printf "/run/secrets/%s/%s" $file.secret $file.key | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tusd-py.envFrom" -}}
{{- if and .Values.s3.enabled .Values.s3.existingSecret }}
envFrom:
  - secretRef: {name: {{ .Values.s3.existingSecret }}}
{{- end }}
{{- end }}

{{- define "tusd-py.secrets" -}}
{{- $names := list }}{{- range .Values.secretFiles }}{{- $names = append $names .secret }}{{- end }}{{- $names | uniq | sortAlpha | toJson }}
{{- end }}

{{- define "tusd-py.mounts" -}}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- range include "tusd-py.secrets" . | fromJsonArray }}
- name: {{ printf "secret-%s" . }}
  mountPath: /run/secrets/{{ . }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "tusd-py.volumes" -}}
- name: data
{{- if .Values.s3.enabled }}
  emptyDir: {}
{{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.storage.existingClaim | default (include "tusd-py.name" .) }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.s3.spoolSize }}}
{{- range include "tusd-py.secrets" . | fromJsonArray }}
- name: {{ printf "secret-%s" . }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- /* What the pods of all three have in common. Arguments: root, part ("server", …), values of the part. */ -}}
{{- define "tusd-py.podHead" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{ toYaml . | indent 2 }}
{{- end }}
serviceAccountName: {{ include "tusd-py.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
{{ toYaml .root.Values.podSecurityContext | indent 2 }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $.values $key }}
{{ $key }}:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tusd-py.container" -}}
image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
{{ toYaml .root.Values.containerSecurityContext | indent 2 }}
{{- include "tusd-py.envFrom" .root }}
resources:
{{ toYaml .values.resources | indent 2 }}
volumeMounts:
{{ include "tusd-py.mounts" .root | indent 2 }}
{{- end }}
