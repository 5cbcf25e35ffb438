"""The worker: runs one model, serves the native and the FastChat wire, registers with controllers."""
