"""Metric plug-ins: one file a metric. A file that starts with an underscore is shared code, not a plug-in."""
