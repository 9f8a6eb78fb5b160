{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* `sluice` for a release of that name. */}}
{{- define "sluice.fullname" -}}
{{- $name := include "sluice.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What a DaemonSet may never change. */}}
{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: service-proxy
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "sluice.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{- define "sluice.healthzAddress" -}}
{{- default "0.0.0.0:10256" .Values.config.healthzBindAddress -}}
{{- end }}

{{/* kube-proxy's default is 127.0.0.1, where nobody from outside can scrape. */}}
{{- define "sluice.metricsAddress" -}}
{{- default (ternary "0.0.0.0:10249" "127.0.0.1:10249" .Values.podMonitor.enabled) .Values.config.metricsBindAddress -}}
{{- end }}

{{- define "sluice.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end }}

{{/* Where kubelet finds an address: the pod's own, which is the node's, unless it is a certain one. */}}
{{- define "sluice.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if not (has $host (list "0.0.0.0" "::")) -}}
{{- $host -}}
{{- end -}}
{{- end }}

{{/* The configuration file. */}}
{{- define "sluice.config" -}}
{{- $fixed := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" "mode" .Values.mode -}}
{{- $addresses := dict "healthzBindAddress" (include "sluice.healthzAddress" .) "metricsBindAddress" (include "sluice.metricsAddress" .) -}}
{{- /* What kubelet gives to a pod of this class; the default, -999, takes a capability that is not there. */ -}}
{{- $defaults := dict "oomScoreAdj" -997 -}}
{{- toYaml (mergeOverwrite $defaults (deepCopy .Values.config) $addresses $fixed) -}}
{{- end }}

{{/* What both containers are started with. */}}
{{- define "sluice.args" -}}
- --config=/etc/sluice/config.yaml
- --hostname-override=$(NODE_NAME)
{{- if eq .Values.mode "ipvs" }}
- --ipvs-drain-timeout={{ .Values.ipvs.drainTimeout }}
- --ipvs-local-addresses={{ .Values.ipvs.localAddresses }}
{{- end }}
- --audit-period={{ .Values.auditPeriod }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "sluice.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if .Values.k8sServiceHost }}
# Instead of the ClusterIP, which kubelet puts here and which does not work before this proxy does.
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.volumeMounts" -}}
- name: config
  # The folder: a file alone would never change.
  mountPath: /etc/sluice
  readOnly: true
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.probe" -}}
{{- $address := include "sluice.healthzAddress" .root -}}
httpGet:
  path: {{ .path }}
  port: healthz
  {{- with include "sluice.probeHost" $address }}
  host: {{ . | quote }}
  {{- end }}
periodSeconds: {{ .probe.periodSeconds }}
timeoutSeconds: {{ .probe.timeoutSeconds }}
failureThreshold: {{ .probe.failureThreshold }}
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "sluice.check" -}}
{{- $kubeconfig := dig "clientConnection" "kubeconfig" "" .Values.config -}}
{{- if not (or .Values.k8sServiceHost $kubeconfig) -}}
{{- fail "k8sServiceHost is needed: the API server's address without the ClusterIP, which works only once a proxy runs (see `kubectl cluster-info`)" -}}
{{- end -}}
{{- if .Values.podMonitor.enabled -}}
{{- $address := include "sluice.metricsAddress" . -}}
{{- if eq $address "0" -}}
{{- fail "podMonitor.enabled, and config.metricsBindAddress is 0: there is nothing to scrape" -}}
{{- end -}}
{{- if or (hasPrefix "127." $address) (hasPrefix "[::1]" $address) -}}
{{- fail (printf "podMonitor.enabled, and config.metricsBindAddress is %s: Prometheus cannot reach that" $address) -}}
{{- end -}}
{{- end -}}
{{- end }}
