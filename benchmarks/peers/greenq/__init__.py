"""greenq itself."""
