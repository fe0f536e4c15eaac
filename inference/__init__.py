"""The gRPC service in front of the engines. Never imports edge or aiohttp."""
