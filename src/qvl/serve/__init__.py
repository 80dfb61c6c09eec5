"""OpenAI's API over HTTP in front of any `ChatModel`; needs the extra `serve`."""
