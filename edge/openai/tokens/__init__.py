"""POST /tokenize and POST /detokenize, which are vLLM's."""
