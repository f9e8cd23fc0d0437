"""
What a cache tells to others: metrics for Prometheus and OpenTelemetry, lines for logs.

    metrics         what is measured, by whatever it is collected
    prometheus      a collector for prometheus_client (echo-cache[prometheus])
    opentelemetry   instruments, and attributes of spans (echo-cache[otel])
    logs            one structured line for each change of state

The one rule: a hit pays nothing. What is told of hits is read from their counters when somebody asks.
"""
