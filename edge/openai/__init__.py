"""Translation between OpenAI's JSON and event streams and the isthmus.v1 contract.

Each endpoint has a folder: `schema` (the parameters), `request` (JSON to proto), `response` (proto
to one document) and `stream` (proto to events). `text`, `decoding` and `errors` are shared.

All of it is pure functions and small state machines: no sockets, clock, randomness, logging, web
framework or RPC library (a test lists the imports). Callers pass in time, ids and model names. The
only exception raised is `OpenAIError`.
"""
