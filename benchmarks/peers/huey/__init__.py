"""huey with greenlets."""
