"""Translation between OpenAI's JSON and event streams and the isthmus.v1 contract.

Each endpoint has a folder: `schema` (the parameters), `request` (JSON to proto), `response` (proto
to one document) and `stream` (proto to events). `text`, `decoding` and `errors` are shared.

Everything here is pure functions and small state machines. They import no sockets, clock,
randomness, logging, web framework or RPC library (a test asserts the list). Callers pass in time,
ids and model names and get bytes. The only exception that leaves is `OpenAIError`.
"""
