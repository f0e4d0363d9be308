"""Pictures of arrays; nothing here knows of models or probes."""
