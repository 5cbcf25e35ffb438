"""The shell of a tier's process: settings, logs, TLS, server, token check, health routes."""
