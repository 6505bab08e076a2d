"""The contenders, one folder each: what the driver knows (peer.py), tasks, client, packages."""
