"""Programs that measure a running stack over HTTP, and the models that they measure it with."""
