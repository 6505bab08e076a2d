"""Redis and Valkey: the only part of greenq that talks to a server."""
