"""The OpenAPI document at /openapi.json; nothing here is used to serve a request."""
