"""Dataset plug-ins: one file a source. A file that starts with an underscore is shared code, not a plug-in."""
