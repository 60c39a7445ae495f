"""What beat and workers can be measured by, for Prometheus and OpenTelemetry."""
