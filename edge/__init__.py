"""The edge: serves OpenAI's REST API over HTTP and calls inference services over gRPC.

It never imports inference, torch, vllm or transformers (a test asserts it).
"""
