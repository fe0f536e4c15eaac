"""Anthropic's Messages API: translated to and from the contract as OpenAI's chat is."""
