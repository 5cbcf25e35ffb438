"""The worker: runs one model, serves the native and the FastChat wire, registers itself."""
