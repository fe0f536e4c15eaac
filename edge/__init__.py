"""HTTP in, gRPC out. Never imports inference, torch, vllm or transformers."""
