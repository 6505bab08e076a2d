"""The contenders, each in a directory: what the driver knows (peer.py), tasks, client, packages."""
