"""Post-training of causal language models on demonstrations, preferences and rewards."""
