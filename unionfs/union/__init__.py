"""How layers become one tree: precedence, nodes, operations, copy-up, diff, commit, and the path API."""
