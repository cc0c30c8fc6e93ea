"""How images travel: the OCI model, references, changes to a config, layers as tar archives. Knows no store."""
