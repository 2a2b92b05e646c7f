{{/* Labels of each object besides those of deploy/. Not part of selectors or pods, so that a new version of the chart with the
same image restarts nothing. */}}
{{- define "probe-handler.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "probe-handler.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Pods of the daemon and of the webhook are not in a mesh themselves. */}}
{{- define "probe-handler.outside-meshes" -}}
sidecar.istio.io/inject: "false"
linkerd.io/inject: disabled
kuma.io/sidecar-injection: disabled
consul.hashicorp.com/connect-inject: "false"
{{- end }}

{{/* The nodes that run pods: the DaemonSets tolerate all taints. */}}
{{- define "probe-handler.nodes" -}}
nodeSelector:
  {{- merge (dict "kubernetes.io/os" "linux") (.Values.agent.nodeSelector | default dict) | toYaml | nindent 2 }}
tolerations:
  - operator: Exists
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
            - {key: type, operator: NotIn, values: [virtual-kubelet]}
{{- end }}

{{- define "probe-handler.pull-secrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "probe-handler.startup-taint" -}}
{{ .Values.agent.startupTaintKey | default "probe-handler.io/starting" }}
{{- end }}

{{/* The text of a file of deploy/. The link to it is one line where links are not supported. */}}
{{- define "probe-handler.file" -}}
{{- $text := .context.Files.Get .file }}
{{- if not (contains "\n" $text) }}
{{- fail (printf "%s is missing: in deploy/chart it is a symbolic link, which Flux and others leave out. Use the packaged chart, probe-handler-%s.tgz (helm package, or a release)" .file .context.Chart.Version) }}
{{- end }}
{{- $text }}
{{- end }}

{{/* The objects of a file of deploy/, with the release's namespace instead of the usual one, and the chart's labels. */}}
{{- define "probe-handler.objects" -}}
{{- $text := include "probe-handler.file" . | replace "probe-handler-system" .context.Release.Namespace }}
{{- $text = replace "probe-handler.io/starting" (include "probe-handler.startup-taint" .context) $text }}
{{- range $document := regexSplit "(?m)^---$" $text -1 }}
{{- $object := fromYaml $document }}
{{- $labels := include "probe-handler.labels" $.context | fromYaml }}
{{- $_ := set $object.metadata "labels" (merge $labels ($.labels | default dict)) }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
