"""Images, containers and their history: what joins the store, OCI's formats, the union and its mounts."""
