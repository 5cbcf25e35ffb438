"""All that touches torch: loading, attention, KV cache, sampling, embeddings."""
