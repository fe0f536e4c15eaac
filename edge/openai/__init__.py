"""Translation between OpenAI's JSON and event streams and the isthmus.v1 contract.

Pure functions and small state machines: no sockets, clock, randomness, logging, web framework or
RPC library is imported here (a test asserts the list). Time, ids and model names are passed in,
bytes come out, and the only exception that leaves is `OpenAIError`.
"""
