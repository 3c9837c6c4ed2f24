"""Labels from any LLM: ask, check, cache, and say what was paid."""
