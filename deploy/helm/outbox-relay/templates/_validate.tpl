{{/*
Reports all mistakes in the values at once, each with the next step. What values.schema.json can say (names and types) is refused before.
*/}}
{{- define "outbox-relay.validate" -}}
{{- $mistakes := list -}}
{{- $values := .Values -}}
{{- $settings := .Values.settings -}}
{{- $secrets := .Values.secrets -}}
{{- $files := .Values.files -}}

{{- if not (or (hasKey $settings "KAFKA_BOOTSTRAP_SERVERS") (hasKey $secrets "KAFKA_BOOTSTRAP_SERVERS")) -}}
{{- $mistakes = append $mistakes "settings.KAFKA_BOOTSTRAP_SERVERS is missing: set the brokers to ask first, such as kafka-1.example.com:9093" -}}
{{- end -}}
{{- if not (hasKey $secrets "DATABASE_URL") -}}
{{- $mistakes = append $mistakes "secrets.DATABASE_URL is missing: put the URL of the relay's user into a Secret (kubectl create secret generic outbox-relay --from-file=DATABASE_URL=FILE), and set existingSecret: outbox-relay and secrets: { DATABASE_URL: {} }" -}}
{{- end -}}

{{- range $name, $value := $settings -}}
{{- if regexMatch "^(DATABASE_URL|RELAY_WAKE_UP_URL|RELAY_ADMIN_TOKEN|KAFKA_.*(PASSWORD|CLIENT_SECRET|PASSPHRASE|KEY_PEM|OAUTHBEARER_CONFIG))$" $name -}}
{{- $mistakes = append $mistakes (printf "settings.%s is a secret and would be readable in the Deployment: put it into a Secret, and name that at secrets.%s" $name $name) -}}
{{- end -}}
{{- if hasSuffix "_FILE" $name -}}
{{- $mistakes = append $mistakes (printf "settings.%s: name the Secret at secrets.%s; the chart mounts the file and sets its path" $name (trimSuffix "_FILE" $name)) -}}
{{- end -}}
{{- if or (hasKey $secrets $name) (hasKey $files $name) -}}
{{- $mistakes = append $mistakes (printf "%s is given twice: keep it in settings, in secrets or in files" $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $settings "RELAY_ADMIN_ADDRESS" -}}
{{- $mistakes = append $mistakes "settings.RELAY_ADMIN_ADDRESS belongs to the chart: set metrics.enabled to open it to other pods" -}}
{{- end -}}
{{- if hasKey $settings "RELAY_NAME" -}}
{{- $mistakes = append $mistakes "settings.RELAY_NAME would give all pods one name: leave it out, and each relay has the name of its pod" -}}
{{- end -}}

{{- range $name, $from := $secrets -}}
{{- if hasKey $files $name -}}
{{- $mistakes = append $mistakes (printf "%s is given twice: keep it in secrets or in files" $name) -}}
{{- end -}}
{{- if not (or $from.existingSecret $values.existingSecret) -}}
{{- $mistakes = append $mistakes (printf "secrets.%s names no Secret: set secrets.%s.existingSecret, or existingSecret for all" $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $from := $files -}}
{{- if and $from.existingSecret $from.existingConfigMap -}}
{{- $mistakes = append $mistakes (printf "files.%s names a Secret and a ConfigMap: keep one of them" $name) -}}
{{- end -}}
{{- if not (or $from.existingSecret $from.existingConfigMap $values.existingSecret) -}}
{{- $mistakes = append $mistakes (printf "files.%s names no Secret and no ConfigMap: set files.%s.existingSecret or files.%s.existingConfigMap" $name $name $name) -}}
{{- end -}}
{{- end -}}

{{- if and .Values.migration.enabled (not .Values.migration.existingSecret) -}}
{{- $mistakes = append $mistakes "migration.existingSecret is missing: name the Secret with the URL of the tables' owner, or set migration.enabled to false and run `outbox-relay migrate` before" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (not (hasKey $secrets "RELAY_ADMIN_TOKEN")) -}}
{{- $mistakes = append $mistakes "metrics.enabled opens an address to other pods, which needs a token: put 16 characters or more into a Secret, and name that at secrets.RELAY_ADMIN_TOKEN" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- $mistakes = append $mistakes "metrics.serviceMonitor.enabled needs metrics.enabled: without it there is nothing to scrape" -}}
{{- end -}}

{{- $shutdown := include "outbox-relay.shutdownSeconds" . | int -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if le (int .) $shutdown -}}
{{- $mistakes = append $mistakes (printf "terminationGracePeriodSeconds is %d and RELAY_SHUTDOWN_TIMEOUT %d s: Kubernetes would kill a relay that is finishing; give it more" (int .) $shutdown) -}}
{{- end -}}
{{- else -}}
{{- if eq $shutdown 0 -}}
{{- $mistakes = append $mistakes (printf "settings.RELAY_SHUTDOWN_TIMEOUT is %q, which the chart cannot count: write it in h, m, s or ms, or set terminationGracePeriodSeconds above it" (get $settings "RELAY_SHUTDOWN_TIMEOUT" | toString)) -}}
{{- end -}}
{{- end -}}

{{- if $mistakes -}}
{{- fail (printf "\n\nThe values have %d mistake(s):\n  - %s\n" (len $mistakes) (join "\n  - " $mistakes)) -}}
{{- end -}}
{{- end -}}
