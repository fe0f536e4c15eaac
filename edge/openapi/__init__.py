"""The OpenAPI document at /openapi.json, made of the types that requests are decoded with."""
