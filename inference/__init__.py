"""gRPC in, engines out. Never imports edge or aiohttp."""
